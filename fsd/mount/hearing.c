/*
 * What is heard of directories, compared with what the kernel was told: Coherence._read and _compare for what a mount
 * hears most, its own changes. Anything else is handed back for them.
 */
#define _GNU_SOURCE
#include "state.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/inotify.h>

/* Whether the kernel holds other attributes of the node than these; it is to forget them then. */
static int outdated(PyObject *node, const struct stat *found)
{
    PyObject *known = SLOT(node, known), *now;
    if (known == Py_None || !(now = known_of(found)))
        return 0;
    int differs = PyObject_RichCompareBool(known, now, Py_NE);
    Py_DECREF(now);
    if (differs == 1)
        set(&SLOT(node, known), Py_NewRef(Py_None));
    return differs;
}

/* An order: a node's attributes, or with a name that name in it. */
static int order(PyObject *orders, PyObject *node, PyObject *name)
{
    PyObject *one = PyTuple_Pack(2, SLOT(node, id), name);
    int failed = one ? PyList_Append(orders, one) : -1;
    Py_XDECREF(one);
    return failed;
}

/* The directory itself. -1: not from here. */
static int compare_itself(PyObject *node, PyObject *orders)
{
    struct stat found;
    if (SLOT(node, known) == Py_None)
        return 0;
    if (status(node, &found) < 0)
        return -1;
    int differs = outdated(node, &found);
    return differs == 1 ? order(orders, node, Py_None) : differs;
}

/* An entry of it. -1: not from here. */
static int compare_entry(PyObject *node, PyObject *name, PyObject *orders)
{
    struct stat found;
    PyObject *told = PyDict_GetItemWithError(SLOT(node, told), name);
    long fd = number(SLOT(node, fd));
    if (!told)
        return PyErr_Occurred() ? -1 : 0;
    if (fd < 0)
        return -1;
    if (fstatat(fd, PyBytes_AS_STRING(name), &found, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT)
            return -1;
        if (number(told) == 0)
            return 0;
    } else {
        PyObject *key = key_of(&found), *child = key ? PyDict_GetItemWithError(by_key, key) : NULL;
        Py_XDECREF(key);
        if (PyErr_Occurred())
            return -1;
        if (child && SLOT(child, dead) != Py_True && PyObject_RichCompareBool(SLOT(child, id), told, Py_EQ) == 1) {
            int differs = outdated(child, &found);
            return differs == 1 ? order(orders, child, Py_None) : differs;
        }
    }
    if (order(orders, node, name) < 0)
        return -1;
    return PyDict_DelItem(SLOT(node, told), name);
}

/*
 * What inotify(7) said, and the directories by watch: (orders, rest). An order is what the kernel is to forget; the rest
 * are the events, (watch, mask, name), that Python has to look at.
 */
PyObject *hearing_compare(PyObject *data, PyObject *watched)
{
    const char *at = PyBytes_AS_STRING(data), *end = at + PyBytes_GET_SIZE(data);
    PyObject *orders = PyList_New(0), *rest = PyList_New(0), *last = NULL;
    while (orders && rest && at + sizeof(struct inotify_event) <= end) {
        struct inotify_event event, next = {.wd = -1};
        memcpy(&event, at, sizeof(event));
        const char *text = at + sizeof(event);
        at = text + event.len;
        if (at + sizeof(next) <= end)
            memcpy(&next, at, sizeof(next));
        PyObject *name = PyBytes_FromString(event.len ? text : "");
        PyObject *node = event.wd < 0 ? NULL : lookup(watched, event.wd);
        int done = name && !PyErr_Occurred() ? 0 : -1;
        if (event.mask & (IN_Q_OVERFLOW | IN_IGNORED)) {
            done = -1;
        } else if (node && done == 0) {
            /* Of events on one entry that follow each other the last is enough: all were read before. */
            int again = event.wd == next.wd && event.len == next.len && event.len &&
                        !(next.mask & (IN_Q_OVERFLOW | IN_IGNORED)) && !strcmp(text, at + sizeof(next));
            if (!again && node != last)
                done = compare_itself(node, orders);
            if (!again && done == 0 && PyBytes_GET_SIZE(name))
                done = compare_entry(node, name, orders);
            if (!again)
                last = done == 0 ? node : NULL;
        }
        if (done < 0) {
            PyErr_Clear();
            PyObject *odd = name ? Py_BuildValue("(iIO)", event.wd, event.mask, name) : NULL;
            if (!odd || PyList_Append(rest, odd) < 0)
                Py_CLEAR(rest);
            Py_XDECREF(odd);
        }
        Py_XDECREF(name);
    }
    PyObject *result = orders && rest ? PyTuple_Pack(2, orders, rest) : NULL;
    Py_XDECREF(orders);
    Py_XDECREF(rest);
    if (!result && !PyErr_Occurred())
        PyErr_NoMemory();
    return result;
}
