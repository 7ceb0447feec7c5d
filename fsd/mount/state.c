/* state.h says what this is. */
#define _GNU_SOURCE
#include "state.h"
#include <fcntl.h>
#include <string.h>
#include <structmember.h>

#define MOST_NAMES 100000 /* fsd.mount.base */
#define NUMBER_BITS 48    /* fsd.mount.nodes */

Py_ssize_t node_offset[NODE_COUNT], handle_offset[HANDLE_COUNT];
#define DEFINE(name) PyObject *str_##name;
ATTRIBUTES(DEFINE)

PyTypeObject *Handle;
PyObject *operations, *nodes, *by_id, *by_key, *handles, *listings, *zero;
double kept, brief;

static PyTypeObject *Node;
static PyObject *devices, *as_it_is, *minus_one, *no_path;

void set(PyObject **slot, PyObject *value)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

long number(PyObject *value)
{
    return value ? PyLong_AsLong(value) : -1;
}

static int is_true(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    int result = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

long attribute(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    long result = number(value);
    Py_XDECREF(value);
    return result;
}

int is_none(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    Py_XDECREF(value);
    return value == Py_None;
}

PyObject *lookup(PyObject *dictionary, uint64_t key)
{
    PyObject *boxed = PyLong_FromUnsignedLongLong(key);
    PyObject *found = boxed ? PyDict_GetItemWithError(dictionary, boxed) : NULL;
    Py_XDECREF(boxed);
    return found;
}

/* What lies beyond 64 bits becomes the last or the first one (syscalls.clamp_ns); ctimes tell of changes then. */
int64_t nanoseconds(struct timespec time)
{
    int64_t result;
    if (__builtin_mul_overflow(time.tv_sec, 1000000000LL, &result) ||
        __builtin_add_overflow(result, time.tv_nsec, &result))
        return time.tv_sec < 0 ? INT64_MIN : INT64_MAX;
    return result;
}

/* ---- what a space shows, and what is told of a node ---- */

/* Of a space that is served; -1: it is not, or this is not in a space. */
int look_at(PyObject *export, struct view *view)
{
    if (export == Py_None || is_true(export, str_gone))
        return -1;
    PyObject *rights = PyObject_GetAttr(export, str_rights);
    PyObject *shown = rights ? PyObject_GetAttr(rights, str_shown) : NULL;
    view->as_it_is = rights == as_it_is;
    view->shown = shown != Py_None;
    view->hidden = attribute(export, str_hidden_ino);
    if (shown && shown != Py_None) {
        view->uid = attribute(shown, str_uid);
        view->gid = attribute(shown, str_gid);
        view->directory = attribute(shown, str_directory);
        view->file = attribute(shown, str_file);
        view->executable = attribute(shown, str_executable);
    }
    Py_XDECREF(rights);
    Py_XDECREF(shown);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *known_of(const struct stat *found)
{
    return Py_BuildValue("(LLL)", (long long)nanoseconds(found->st_ctim), (long long)nanoseconds(found->st_mtim),
                         (long long)found->st_size);
}

/* Base.answer */
int fill(struct fuse_attr *out, const struct stat *found, PyObject *node, const struct view *view)
{
    memset(out, 0, sizeof(*out));
    out->ino = PyLong_AsUnsignedLongLong(SLOT(node, id));
    out->mode = found->st_mode;
    out->uid = found->st_uid;
    out->gid = found->st_gid;
    if (view->shown) {
        uint32_t kind = found->st_mode & S_IFMT;
        uint32_t bits = kind == S_IFDIR                  ? view->directory
                        : kind == S_IFLNK                ? 0777
                        : found->st_mode & (S_IXUSR | S_IXGRP | S_IXOTH) ? view->executable
                                                         : view->file;
        out->mode = kind | bits;
        out->uid = view->uid;
        out->gid = view->gid;
    }
    out->nlink = found->st_nlink;
    if (S_ISDIR(found->st_mode) && SLOT(node, parent) == Py_None && found->st_nlink > 2)
        out->nlink -= 1;
    out->rdev = found->st_rdev;
    out->size = found->st_size;
    out->blocks = found->st_blocks;
    out->blksize = found->st_blksize;
    out->atime = found->st_atim.tv_sec;
    out->atimensec = found->st_atim.tv_nsec;
    out->mtime = found->st_mtim.tv_sec;
    out->mtimensec = found->st_mtim.tv_nsec;
    out->ctime = found->st_ctim.tv_sec;
    out->ctimensec = found->st_ctim.tv_nsec;
    PyObject *known = known_of(found);
    if (!known)
        return -1;
    set(&SLOT(node, known), known);
    return 0;
}

void fill_entry(struct fuse_entry_out *out, PyObject *node, double lasting)
{
    memset(out, 0, offsetof(struct fuse_entry_out, attr));
    out->nodeid = PyLong_AsUnsignedLongLong(SLOT(node, id));
    out->generation = PyLong_AsUnsignedLongLong(SLOT(node, generation));
    out->entry_valid = out->attr_valid = (uint64_t)lasting;
}

/* Base.tell; negative: out of memory */
double tell(PyObject *parent, PyObject *name, PyObject *id)
{
    PyObject *told = SLOT(parent, told);
    if (PyDict_GET_SIZE(told) >= MOST_NAMES) {
        int there = PyDict_Contains(told, name);
        if (there <= 0)
            return there;
    }
    if (PyDict_SetItem(told, name, id) < 0)
        return -1;
    return number(SLOT(parent, watch)) >= 0 ? kept : brief;
}

/* ---- nodes ---- */

static PyObject *new_node(PyObject *id, PyObject *parent, PyObject *name, const struct stat *found, PyObject *key)
{
    PyObject *node = Node->tp_alloc(Node, 0);
    long generation = attribute(nodes, str__generation) + 1;
    PyObject *boxed = PyLong_FromLong(generation);
    if (!node || !boxed || PyObject_SetAttr(nodes, str__generation, boxed) < 0) {
        Py_XDECREF(boxed);
        Py_XDECREF(node);
        return NULL;
    }
    SLOT(node, generation) = boxed;
    SLOT(node, id) = Py_NewRef(id);
    SLOT(node, export) = Py_NewRef(SLOT(parent, export));
    SLOT(node, parent) = Py_NewRef(parent);
    SLOT(node, name) = Py_NewRef(name);
    SLOT(node, dev) = Py_NewRef(PyTuple_GET_ITEM(key, 0));
    SLOT(node, ino) = Py_NewRef(PyTuple_GET_ITEM(key, 1));
    SLOT(node, is_dir) = PyBool_FromLong(S_ISDIR(found->st_mode));
    SLOT(node, fd) = Py_NewRef(minus_one);
    SLOT(node, watch) = Py_NewRef(minus_one);
    SLOT(node, lookups) = Py_NewRef(zero);
    SLOT(node, backing) = Py_NewRef(zero);
    SLOT(node, direct) = Py_NewRef(zero);
    SLOT(node, dead) = Py_NewRef(Py_False);
    SLOT(node, known) = Py_NewRef(Py_None);
    SLOT(node, data) = Py_NewRef(Py_None);
    SLOT(node, path) = Py_NewRef(no_path);
    SLOT(node, handles) = PyList_New(0);
    SLOT(node, told) = PyDict_New();
    if (!SLOT(node, handles) || !SLOT(node, told) || PyDict_SetItem(by_id, id, node) < 0 ||
        PyDict_SetItem(by_key, key, node) < 0) {
        Py_DECREF(node);
        return NULL;
    }
    Py_DECREF(node);
    return node; /* by_id holds it */
}

PyObject *key_of(const struct stat *found)
{
    return Py_BuildValue("(KK)", (unsigned long long)found->st_dev, (unsigned long long)found->st_ino);
}

/* Nodes.refer, borrowed; NULL without an exception: the handler has to do it. */
PyObject *refer(PyObject *parent, PyObject *name, const struct stat *found)
{
    PyObject *key = key_of(found), *node = key ? PyDict_GetItemWithError(by_key, key) : NULL;
    if (!node && !PyErr_Occurred()) {
        PyObject *device = lookup(devices, found->st_dev), *id = NULL;
        if (device && found->st_ino > FUSE_ROOT_ID) {
            uint64_t above = PyLong_AsUnsignedLongLong(device);
            id = PyLong_FromUnsignedLongLong(above ? above << NUMBER_BITS ^ found->st_ino : found->st_ino);
        }
        if (id && PyDict_Contains(by_id, id) == 0)
            node = new_node(id, parent, name, found, key);
        Py_XDECREF(id);
    } else if (node) {
        int directory = SLOT(node, is_dir) == Py_True;
        PyObject *above = SLOT(node, parent);
        if (SLOT(node, dead) == Py_True || directory != S_ISDIR(found->st_mode) || above == Py_None ||
            (directory && (above != parent || PyObject_RichCompareBool(SLOT(node, name), name, Py_EQ) != 1))) {
            node = NULL;
        } else if (number(SLOT(node, fd)) < 0) {
            set(&SLOT(node, parent), Py_NewRef(parent));
            set(&SLOT(node, name), Py_NewRef(name));
        }
    }
    Py_XDECREF(key);
    return node;
}

/* The same, by way of the handlers' own function where that is needed: for what can't be left to them any more. */
PyObject *refer_surely(PyObject *parent, PyObject *name, const struct stat *found)
{
    PyObject *node = refer(parent, name, found);
    if (node || PyErr_Occurred())
        return node;
    PyObject *fd = SLOT(parent, fd);
    node = PyObject_CallMethodObjArgs(nodes, str_refer_at, parent, name, fd, NULL);
    Py_XDECREF(node); /* by_id holds it */
    return node;
}

int add_lookups(PyObject *node, long count)
{
    PyObject *boxed = PyLong_FromLong(number(SLOT(node, lookups)) + count);
    if (!boxed)
        return -1;
    set(&SLOT(node, lookups), boxed);
    return 0;
}

/* Nodes._drop */
static void drop(PyObject *node)
{
    if (number(SLOT(node, watch)) < 0 && number(SLOT(node, fd)) < 0 && SLOT(node, parent) != Py_None) {
        PyObject *key = PyTuple_Pack(2, SLOT(node, dev), SLOT(node, ino));
        PyObject *told = SLOT(SLOT(node, parent), told), *name = SLOT(node, name);
        PyObject *said = PyDict_GetItemWithError(told, name);
        Py_INCREF(node);
        if (said && PyObject_RichCompareBool(said, SLOT(node, id), Py_EQ) == 1)
            PyDict_DelItem(told, name);
        if (key && PyDict_GetItemWithError(by_key, key) == node)
            PyDict_DelItem(by_key, key);
        if (PyDict_GetItemWithError(by_id, SLOT(node, id)) == node)
            PyDict_DelItem(by_id, SLOT(node, id));
        Py_DECREF(node);
        Py_XDECREF(key);
    } else {
        Py_INCREF(node);
        PyObject *done = PyObject_CallMethodOneArg(nodes, str__drop, node);
        Py_XDECREF(done);
        Py_DECREF(node);
    }
}

void drop_if_unused(PyObject *node)
{
    if (number(SLOT(node, lookups)) <= 0 && PyList_GET_SIZE(SLOT(node, handles)) == 0 &&
        PyLong_AsUnsignedLongLong(SLOT(node, id)) != FUSE_ROOT_ID)
        drop(node);
}

void forget(uint64_t id, uint64_t count)
{
    PyObject *node = lookup(by_id, id);
    if (node && add_lookups(node, -(long)count) == 0)
        drop_if_unused(node);
}

/* Nodes.status; -1: the handler has to do it. */
int status(PyObject *node, struct stat *found)
{
    long fd = number(SLOT(node, fd));
    if (fd >= 0)
        return fstat(fd, found);
    if (PyList_GET_SIZE(SLOT(node, handles)) > 0)
        return fstat(number(PyList_GET_ITEM(SLOT(node, handles), 0)), found);
    if (SLOT(node, parent) == Py_None || (fd = number(SLOT(SLOT(node, parent), fd))) < 0)
        return -1;
    if (fstatat(fd, PyBytes_AS_STRING(SLOT(node, name)), found, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (found->st_ino != PyLong_AsUnsignedLongLong(SLOT(node, ino)) ||
        found->st_dev != PyLong_AsUnsignedLongLong(SLOT(node, dev)))
        return -1;
    return 0;
}

/* Nodes.path of a directory, borrowed: it stays while the directory does not move. */
PyObject *path_of(PyObject *directory)
{
    PyObject *path = SLOT(directory, path);
    if (number(PyTuple_GET_ITEM(path, 0)) != attribute(nodes, str_moves)) {
        PyObject *found = PyObject_CallMethodOneArg(nodes, str_path, directory);
        Py_XDECREF(found);
        if (!found)
            return NULL;
    }
    return PyTuple_GET_ITEM(SLOT(directory, path), 1);
}

/* ---- beginning ---- */

static int find_slots(PyTypeObject *type, const char *const *names, int count, Py_ssize_t *offsets)
{
    for (int index = 0; index < count; index++) {
        PyObject *slot = PyObject_GetAttrString((PyObject *)type, names[index]);
        int fits = slot && Py_IS_TYPE(slot, &PyMemberDescr_Type) &&
                   ((PyMemberDescrObject *)slot)->d_member->type == T_OBJECT_EX;
        if (fits)
            offsets[index] = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_XDECREF(slot);
        if (!fits)
            return -1;
    }
    return 0;
}

int state_begin(PyObject *given, PyObject *node_type, PyObject *handle_type, PyObject *disk)
{
#define TEXT(name) #name,
    static const char *const node_names[] = {NODE_SLOTS(TEXT)};
    static const char *const handle_names[] = {"appends", "node", "token", "writes"};
    PyObject *node_slots = PyObject_GetAttrString(node_type, "__slots__");
    PyObject *handle_slots = PyObject_GetAttrString(handle_type, "__slots__");
    Node = (PyTypeObject *)Py_NewRef(node_type);
    Handle = (PyTypeObject *)Py_NewRef(handle_type);
    if (!node_slots || PyObject_Length(node_slots) != NODE_COUNT || !handle_slots ||
        PyObject_Length(handle_slots) != HANDLE_COUNT ||
        find_slots(Node, node_names, NODE_COUNT, node_offset) < 0 ||
        find_slots(Handle, handle_names, HANDLE_COUNT, handle_offset) < 0) {
        PyErr_SetString(PyExc_TypeError, "nodes or handles are laid out in another way");
        return -1;
    }
#define INTERN(name) str_##name = PyUnicode_InternFromString(#name);
    ATTRIBUTES(INTERN)
    operations = Py_NewRef(given);
    as_it_is = Py_NewRef(disk);
    nodes = PyObject_GetAttrString(given, "nodes");
    handles = PyObject_GetAttrString(given, "handles");
    listings = PyObject_GetAttrString(given, "_listings");
    by_id = nodes ? PyObject_GetAttrString(nodes, "by_id") : NULL;
    by_key = nodes ? PyObject_GetAttrString(nodes, "by_key") : NULL;
    devices = nodes ? PyObject_GetAttrString(nodes, "_devices") : NULL;
    zero = PyLong_FromLong(0);
    minus_one = PyLong_FromLong(-1);
    no_path = Py_BuildValue("(iy)", -1, "");
    PyObject *seconds[] = {PyObject_GetAttrString(given, "_kept"), PyObject_GetAttrString(given, "_brief")};
    kept = seconds[0] ? PyFloat_AsDouble(seconds[0]) : -1;
    brief = seconds[1] ? PyFloat_AsDouble(seconds[1]) : -1;
    Py_XDECREF(seconds[0]);
    Py_XDECREF(seconds[1]);
    Py_DECREF(node_slots);
    Py_DECREF(handle_slots);
    return PyErr_Occurred() ? -1 : 0;
}
