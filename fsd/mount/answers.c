/*
 * The requests that programs make by the thousand, answered where they are read: LOOKUP, FORGET, GETATTR, OPEN, CREATE,
 * READ, WRITE, RELEASE and READDIRPLUS. Compiled together with shim.c, which calls `answer` with each request.
 *
 * The state is Python's own: Node and Handle objects and the dictionaries of fsd.mount.nodes, whose invariants hold
 * here as well. Each function does what the handler of the same name does, in its common case, and says "not mine" (0)
 * before it has changed anything in every other: names with a dot, internals, roles, quotas, what has several names or
 * an old number, and all errors but ENOENT. The handlers then see the request as if this file did not exist.
 *
 * Called by the event loop's thread with the interpreter's lock held, which is given away only to wait.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "shim.h"

#define INLINE (1 << 14)            /* fsd.mount.files: bytes that are read at once */
#define MOST_NAMES 100000           /* fsd.mount.base */
#define PASSED (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC | O_NOATIME | O_DIRECT)
#define PASSTHROUGH (1u << 7)       /* FOPEN_PASSTHROUGH, newer than some headers */
#define NUMBER_BITS 48              /* fsd.mount.nodes */
#define MOST_READ (1 << 20)
#define PATIENCE 1                  /* fsd.mount.loop, milliseconds */

/* ---- Python's objects ---- */

#define NODE_SLOTS(X)                                                                                                 \
    X(backing) X(data) X(dead) X(dev) X(direct) X(export) X(fd) X(generation) X(handles) X(id) X(ino) X(is_dir)        \
    X(known) X(lookups) X(name) X(parent) X(path) X(told) X(watch)
#define HANDLE_SLOTS(X) X(h_node) X(h_token) X(h_writes)
#define ATTRIBUTES(X)                                                                                                 \
    X(gone) X(hidden_ino) X(rights) X(shown) X(limit) X(announcer) X(uid) X(gid) X(directory) X(file) X(executable)     \
    X(check_write) X(opened) X(closed) X(moves) X(_generation) X(_drop) X(names) X(allowed) X(node) X(hides_at)         \
    X(refer_at) X(_names) X(path)

#define ENUM(name) AT_##name,
enum { NODE_SLOTS(ENUM) NODE_COUNT };
enum { HANDLE_SLOTS(ENUM) HANDLE_COUNT };
#define DECLARE(name) static PyObject *str_##name;
ATTRIBUTES(DECLARE)

static Py_ssize_t node_offset[NODE_COUNT], handle_offset[HANDLE_COUNT];
#define SLOT(object, slot) (*(PyObject **)((char *)(object) + node_offset[AT_##slot]))
#define HANDLE(object, slot) (*(PyObject **)((char *)(object) + handle_offset[AT_##slot]))

static PyTypeObject *Node, *Handle;
static PyObject *operations, *nodes, *by_id, *by_key, *devices, *handles, *listings, *as_it_is;
static PyObject *zero, *minus_one, *nothing, *no_path;
static double kept, brief;
static uid_t our_uid;
static gid_t our_gid;
static char buffer[MOST_READ];

static void set(PyObject **slot, PyObject *value) /* takes the reference */
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

static long number(PyObject *value)
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

static long attribute(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    long result = number(value);
    Py_XDECREF(value);
    return result;
}

static int is_none(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    Py_XDECREF(value);
    return value == Py_None;
}

static PyObject *lookup(PyObject *dictionary, uint64_t key) /* borrowed */
{
    PyObject *boxed = PyLong_FromUnsignedLongLong(key);
    PyObject *found = boxed ? PyDict_GetItemWithError(dictionary, boxed) : NULL;
    Py_XDECREF(boxed);
    return found;
}

static int64_t nanoseconds(struct timespec time)
{
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* ---- what a space shows, and what is told of a node ---- */

struct view {
    int as_it_is, shown;
    uint32_t uid, gid, directory, file, executable;
    uint64_t hidden;
};

/* Of a space that is served; -1: it is not, or this is not in a space. */
static int look_at(PyObject *export, struct view *view)
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

static int note_known(PyObject *node, const struct stat *found)
{
    PyObject *known = Py_BuildValue("(LLL)", (long long)nanoseconds(found->st_ctim),
                                    (long long)nanoseconds(found->st_mtim), (long long)found->st_size);
    if (!known)
        return -1;
    set(&SLOT(node, known), known);
    return 0;
}

/* Base.answer */
static int fill(struct fuse_attr *out, const struct stat *found, PyObject *node, const struct view *view)
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
    return note_known(node, found);
}

static void fill_entry(struct fuse_entry_out *out, PyObject *node, double lasting)
{
    memset(out, 0, offsetof(struct fuse_entry_out, attr));
    out->nodeid = PyLong_AsUnsignedLongLong(SLOT(node, id));
    out->generation = PyLong_AsUnsignedLongLong(SLOT(node, generation));
    out->entry_valid = out->attr_valid = (uint64_t)lasting;
}

/* Base.tell; negative: out of memory */
static double tell(PyObject *parent, PyObject *name, PyObject *id)
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

static PyObject *key_of(const struct stat *found)
{
    return Py_BuildValue("(KK)", (unsigned long long)found->st_dev, (unsigned long long)found->st_ino);
}

/* Nodes.refer, borrowed; NULL without an exception: the handler has to do it. */
static PyObject *refer(PyObject *parent, PyObject *name, const struct stat *found)
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
static PyObject *refer_surely(PyObject *parent, PyObject *name, const struct stat *found)
{
    PyObject *node = refer(parent, name, found);
    if (node || PyErr_Occurred())
        return node;
    PyObject *fd = SLOT(parent, fd);
    node = PyObject_CallMethodObjArgs(nodes, str_refer_at, parent, name, fd, NULL);
    Py_XDECREF(node); /* by_id holds it */
    return node;
}

static int add_lookups(PyObject *node, long count)
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

static void drop_if_unused(PyObject *node)
{
    if (number(SLOT(node, lookups)) <= 0 && PyList_GET_SIZE(SLOT(node, handles)) == 0 &&
        PyLong_AsUnsignedLongLong(SLOT(node, id)) != FUSE_ROOT_ID)
        drop(node);
}

static void forget(uint64_t id, uint64_t count)
{
    PyObject *node = lookup(by_id, id);
    if (node && add_lookups(node, -(long)count) == 0)
        drop_if_unused(node);
}

/* Nodes.status; -1: the handler has to do it. */
static int status(PyObject *node, struct stat *found)
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

/* ---- answers ---- */

struct request {
    int fuse;
    const struct fuse_in_header *in;
    const char *body; /* what follows the header */
    size_t size;
};

static int reply(const struct request *request, int error, const void *body, size_t size)
{
    struct fuse_out_header out = {.len = sizeof(out) + size, .error = -error, .unique = request->in->unique};
    struct iovec pieces[] = {{&out, sizeof(out)}, {(void *)body, size}};
    return writev(request->fuse, pieces, size ? 2 : 1) < 0 ? -1 : 0;
}

static int answer_lookup(const struct request *request)
{
    const char *text = request->body;
    PyObject *parent = lookup(by_id, request->in->nodeid);
    struct view view;
    struct stat found;
    long fd;
    if (!parent || text[0] == '.' || look_at(SLOT(parent, export), &view) < 0 || number(SLOT(parent, watch)) < 0 ||
        (fd = number(SLOT(parent, fd))) < 0)
        return 0;
    int failed = fstatat(fd, text, &found, AT_SYMLINK_NOFOLLOW) < 0 ? errno : 0;
    if ((failed && failed != ENOENT) || (!failed && found.st_ino == view.hidden))
        return 0;
    PyObject *name = PyBytes_FromString(text);
    if (!name)
        return 0;
    struct fuse_entry_out entry;
    PyObject *node = failed ? NULL : refer(parent, name, &found);
    double lasting = failed || node ? tell(parent, name, failed ? zero : SLOT(node, id)) : -1;
    int done = lasting >= 0;
    if (done && failed) {
        memset(&entry, 0, sizeof(entry));
        entry.entry_valid = (uint64_t)lasting;
        reply(request, 0, &entry, sizeof(entry));
    } else if (done && add_lookups(node, 1) == 0) {
        uint64_t id = PyLong_AsUnsignedLongLong(SLOT(node, id));
        fill_entry(&entry, node, lasting);
        fill(&entry.attr, &found, node, &view);
        if (reply(request, 0, &entry, sizeof(entry)) < 0)
            forget(id, 1); /* nobody waits for it any more */
    }
    Py_DECREF(name);
    return done;
}

static int answer_forget(const struct request *request)
{
    const struct fuse_forget_in *one = (const void *)request->body;
    forget(request->in->nodeid, one->nlookup);
    return 1;
}

static int answer_forgets(const struct request *request)
{
    const struct fuse_batch_forget_in *many = (const void *)request->body;
    const struct fuse_forget_one *each = (const void *)(many + 1);
    for (uint32_t index = 0; index < many->count; index++)
        forget(each[index].nodeid, each[index].nlookup);
    return 1;
}

static int answer_getattr(const struct request *request)
{
    PyObject *node = lookup(by_id, request->in->nodeid), *parent;
    struct fuse_attr_out out;
    struct view view;
    struct stat found;
    if (!node || look_at(SLOT(node, export), &view) < 0 || status(node, &found) < 0)
        return 0;
    parent = SLOT(node, parent);
    memset(&out, 0, sizeof(out));
    out.attr_valid = (uint64_t)(parent == Py_None || number(SLOT(parent, watch)) >= 0 ? kept : brief);
    if (fill(&out.attr, &found, node, &view) < 0)
        return 0;
    reply(request, 0, &out, sizeof(out));
    return 1;
}

/* ---- open files ---- */

/* Nodes.path of a directory, borrowed: it stays while the directory does not move. */
static PyObject *path_of(PyObject *directory)
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

/* Files._opened; the flags for the kernel, or -1 with an exception. The descriptor stays the caller's on failure. */
static int register_handle(PyObject *node, PyObject *export, int fd, const struct stat *found, int writes,
                           struct fuse_open_out *out)
{
    PyObject *open = SLOT(node, handles), *parent = SLOT(node, parent), *token = Py_NewRef(zero);
    PyObject *announcer = PyObject_GetAttr(export, str_announcer);
    if (writes && announcer && announcer != Py_None && parent != Py_None) {
        PyObject *path = path_of(parent);
        set(&token,
            path ? PyObject_CallMethodObjArgs(announcer, str_opened, path, SLOT(node, name), NULL) : NULL);
    }
    Py_XDECREF(announcer);
    long backing = number(SLOT(node, backing));
    int flags = 0;
    if (token && shim_passthrough && (backing > 0 || PyList_GET_SIZE(open) == 0)) {
        if (!backing && (backing = shim_register(fd)) > 0)
            set(&SLOT(node, backing), PyLong_FromLong(backing));
        if (backing > 0)
            flags = PASSTHROUGH;
    }
    if (!flags) {
        PyObject *now = Py_BuildValue("(LL)", (long long)nanoseconds(found->st_mtim), (long long)found->st_size);
        if (now && PyObject_RichCompareBool(SLOT(node, data), now, Py_EQ) == 1)
            flags = FOPEN_KEEP_CACHE;
        Py_XDECREF(now);
        if (shim_passthrough)
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
    }
    PyObject *handle = token ? Handle->tp_alloc(Handle, 0) : NULL;
    PyObject *boxed = PyLong_FromLong(fd);
    if (handle) {
        HANDLE(handle, h_node) = Py_NewRef(node);
        HANDLE(handle, h_token) = Py_NewRef(token);
        HANDLE(handle, h_writes) = PyBool_FromLong(writes);
    }
    int failed = !handle || !boxed || PyList_Append(open, boxed) < 0 || PyDict_SetItem(handles, boxed, handle) < 0;
    Py_XDECREF(token);
    Py_XDECREF(handle);
    Py_XDECREF(boxed);
    memset(out, 0, sizeof(*out));
    out->fh = fd;
    out->open_flags = flags;
    if (flags & PASSTHROUGH)
        memcpy((char *)out + 12, &(int32_t){backing}, 4); /* backing_id, padding in older headers */
    return failed ? -1 : 0;
}

/* Whether this file can do it: the disk's own rights, no quota. */
static int may_open(PyObject *export, const struct view *view, int writes)
{
    if (!view->as_it_is || !is_none(export, str_limit))
        return 0;
    if (!writes)
        return 1;
    PyObject *done = PyObject_CallMethodOneArg(export, str_check_write, Py_None);
    Py_XDECREF(done);
    return done != NULL;
}

static int answer_open(const struct request *request)
{
    const struct fuse_open_in *in = (const void *)request->body;
    PyObject *node = lookup(by_id, request->in->nodeid);
    int writes = (in->flags & O_ACCMODE) != O_RDONLY;
    struct fuse_open_out out;
    struct view view;
    struct stat found;
    if (!node || in->flags & O_TRUNC || look_at(SLOT(node, export), &view) < 0 || number(SLOT(node, fd)) >= 0 ||
        SLOT(node, parent) == Py_None || !may_open(SLOT(node, export), &view, writes))
        return 0;
    long where = number(SLOT(SLOT(node, parent), fd));
    int passed = in->flags & PASSED & ~(shim_passthrough ? 0 : O_DIRECT);
    int fd = where < 0 ? -1 : openat(where, PyBytes_AS_STRING(SLOT(node, name)), passed | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (fstat(fd, &found) < 0 || found.st_ino != PyLong_AsUnsignedLongLong(SLOT(node, ino)) ||
        found.st_dev != PyLong_AsUnsignedLongLong(SLOT(node, dev)) ||
        register_handle(node, SLOT(node, export), fd, &found, writes, &out) < 0) {
        close(fd);
        return 0;
    }
    reply(request, 0, &out, sizeof(out));
    return 1;
}

static int answer_create(const struct request *request)
{
    const struct fuse_create_in *in = (const void *)request->body;
    const char *text = request->body + sizeof(*in);
    PyObject *parent = lookup(by_id, request->in->nodeid);
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out;
    struct view view;
    struct stat found;
    if (!parent || text[0] == '.' || request->in->uid != our_uid || request->in->gid != our_gid ||
        look_at(SLOT(parent, export), &view) < 0 || number(SLOT(parent, watch)) < 0 ||
        !may_open(SLOT(parent, export), &view, 1))
        return 0;
    long where = number(SLOT(parent, fd));
    int passed = in->flags & (PASSED | O_TRUNC | O_EXCL) & ~(shim_passthrough ? 0 : O_DIRECT);
    int mode = in->mode & 07777 & ~in->umask;
    int fd = where < 0 ? -1 : openat(where, text, passed | O_CREAT | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return 0;
    PyObject *name = PyBytes_FromString(text), *node = NULL, *key = NULL;
    if (name && fstat(fd, &found) == 0 && (key = key_of(&found))) {
        PyObject *old = PyDict_GetItemWithError(by_key, key);
        if (old && PyList_GET_SIZE(SLOT(old, handles)) == 0 && found.st_nlink == 1 && found.st_size == 0)
            set(&SLOT(old, dead), Py_NewRef(Py_True));
        set(&SLOT(parent, known), Py_NewRef(Py_None));
        node = refer_surely(parent, name, &found);
    }
    double lasting = node ? tell(parent, name, SLOT(node, id)) : -1;
    if (lasting >= 0 && fill(&out.entry.attr, &found, node, &view) == 0 &&
        register_handle(node, SLOT(parent, export), fd, &found, 1, &out.open) == 0) {
        add_lookups(node, 1);
        fill_entry(&out.entry, node, lasting);
        reply(request, 0, &out, sizeof(out));
    } else {
        close(fd);
        reply(request, EIO, NULL, 0);
    }
    Py_XDECREF(key);
    Py_XDECREF(name);
    return 1;
}

static int answer_release(const struct request *request)
{
    const struct fuse_release_in *in = (const void *)request->body;
    PyObject *handle = in->fh >> 32 ? NULL : lookup(handles, in->fh);
    if (!handle)
        return 0;
    int fd = in->fh;
    struct stat found;
    PyObject *boxed = PyLong_FromLong(fd), *node = Py_NewRef(HANDLE(handle, h_node));
    PyObject *open = SLOT(node, handles), *export = SLOT(node, export);
    Py_INCREF(handle);
    if (boxed)
        PyDict_DelItem(handles, boxed);
    for (Py_ssize_t index = PyList_GET_SIZE(open) - 1; index >= 0; index--)
        if (number(PyList_GET_ITEM(open, index)) == fd)
            PyList_SetSlice(open, index, index + 1, NULL);
    if (fstat(fd, &found) == 0) {
        if (HANDLE(handle, h_writes) == Py_True)
            note_known(node, &found);
        set(&SLOT(node, data),
            Py_BuildValue("(LL)", (long long)nanoseconds(found.st_mtim), (long long)found.st_size));
    }
    if (number(HANDLE(handle, h_token)) > 0) {
        PyObject *announcer = PyObject_GetAttr(export, str_announcer);
        PyObject *done =
            announcer ? PyObject_CallMethodOneArg(announcer, str_closed, HANDLE(handle, h_token)) : NULL;
        if (!done)
            PyErr_WriteUnraisable(handle);
        Py_XDECREF(done);
        Py_XDECREF(announcer);
    }
    close(fd);
    if (PyList_GET_SIZE(open) == 0 && number(SLOT(node, backing)) > 0) {
        shim_unregister(number(SLOT(node, backing)));
        set(&SLOT(node, backing), Py_NewRef(zero));
    }
    drop_if_unused(node);
    reply(request, 0, NULL, 0);
    Py_DECREF(handle);
    Py_DECREF(node);
    Py_XDECREF(boxed);
    return 1;
}

static int answer_read(const struct request *request)
{
    const struct fuse_read_in *in = (const void *)request->body;
    struct iovec piece = {buffer, in->size};
    struct stat found;
    if (in->size > sizeof(buffer))
        return 0;
    /* More than a little is read at once only if nobody has to wait for the disk. */
    ssize_t got = preadv2(in->fh & 0xffffffffu, &piece, 1, in->offset, in->size > INLINE ? RWF_NOWAIT : 0);
    if (got < 0 || (got < in->size && in->size > INLINE &&
                    (fstat(in->fh & 0xffffffffu, &found) < 0 || (int64_t)in->offset + got < found.st_size)))
        return 0;
    reply(request, 0, buffer, got);
    return 1;
}

static int answer_write(const struct request *request)
{
    const struct fuse_write_in *in = (const void *)request->body;
    const char *data = request->body + sizeof(*in);
    PyObject *handle = in->fh >> 32 ? NULL : lookup(handles, in->fh);
    if (!handle || request->size < sizeof(*in) + in->size || !is_none(SLOT(HANDLE(handle, h_node), export), str_limit))
        return 0;
    set(&SLOT(HANDLE(handle, h_node), known), Py_NewRef(Py_None));
    ssize_t done = pwrite(in->fh, data, in->size, in->offset);
    if (done < 0)
        return 0;
    while (done < in->size) {
        ssize_t more = pwrite(in->fh, data + done, in->size - done, in->offset + done);
        if (more < 0) {
            reply(request, errno, NULL, 0);
            return 1;
        }
        done += more;
    }
    struct fuse_write_out out = {.size = done};
    reply(request, 0, &out, sizeof(out));
    return 1;
}

/* ---- listing ---- */

struct page {
    size_t used, size;
};

/* One entry; 0: it does not fit. */
static int put(struct page *page, const char *name, size_t length, uint64_t next, const struct fuse_entry_out *entry)
{
    size_t size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + length);
    if (page->used + size > page->size)
        return 0;
    struct fuse_direntplus *out = (void *)(buffer + page->used);
    memset((char *)out + size - 8, 0, 8);
    out->entry_out = *entry;
    out->dirent.ino = entry->attr.ino;
    out->dirent.off = next;
    out->dirent.namelen = length;
    out->dirent.type = (entry->attr.mode & S_IFMT) >> 12;
    memcpy(out->dirent.name, name, length);
    page->used += size;
    return 1;
}

/* Names._own: the directory itself, of which the kernel counts and keeps nothing. -1: the handler has to do it. */
static int put_own(struct page *page, PyObject *node, const char *name, uint64_t next)
{
    struct fuse_entry_out entry;
    struct stat found;
    struct view view;
    if (look_at(SLOT(node, export), &view) < 0 || status(node, &found) < 0)
        return -1;
    fill_entry(&entry, node, 0);
    if (fill(&entry.attr, &found, node, &view) < 0)
        return -1;
    return put(page, name, strlen(name), next, &entry);
}

/* Names._reply: 1: go on, 0: the page is full, -1: an exception. */
static int put_child(struct page *page, PyObject *directory, PyObject *name, uint64_t next, const struct view *view)
{
    const char *text = PyBytes_AS_STRING(name);
    long fd = number(SLOT(directory, fd));
    struct fuse_entry_out entry;
    struct stat found;
    if (page->used + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + PyBytes_GET_SIZE(name)) > page->size)
        return 0;
    if (fstatat(fd, text, &found, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 1 : -1;
    if (found.st_ino == view->hidden || text[0] == '.') {
        PyObject *hidden =
            PyObject_CallMethodObjArgs(operations, str_hides_at, directory, name, NULL);
        int hides = hidden ? PyObject_IsTrue(hidden) : -1;
        Py_XDECREF(hidden);
        if (hides)
            return hides < 0 ? -1 : 1;
    }
    PyObject *node = refer_surely(directory, name, &found);
    double lasting = node ? tell(directory, name, SLOT(node, id)) : -1;
    if (lasting < 0 || add_lookups(node, 1) < 0)
        return -1;
    fill_entry(&entry, node, lasting);
    if (fill(&entry.attr, &found, node, view) < 0)
        return -1;
    return put(page, text, PyBytes_GET_SIZE(name), next, &entry);
}

static int answer_readdirplus(const struct request *request)
{
    const struct fuse_read_in *in = (const void *)request->body;
    PyObject *listing = lookup(listings, in->fh), *names = NULL;
    struct page page = {.size = in->size < sizeof(buffer) ? in->size : sizeof(buffer)};
    struct view view;
    if (!listing || !is_none(listing, str_allowed))
        return 0;
    PyObject *node = PyObject_GetAttr(listing, str_node);
    int going = node && look_at(SLOT(node, export), &view) == 0 && number(SLOT(node, fd)) >= 0 ? 1 : -1;
    if (going > 0 && in->offset > 0) {
        names = PyObject_GetAttr(listing, str_names);
        if (names == Py_None)
            Py_CLEAR(names);
    }
    if (going > 0 && !names) {
        names = PyObject_CallMethodOneArg(operations, str__names, node);
        if (!names || PyObject_SetAttr(listing, str_names, names) < 0)
            going = -1;
    }
    if (going > 0 && in->offset < 1)
        going = put_own(&page, node, ".", 1);
    if (going > 0 && in->offset < 2)
        going = put_own(&page, SLOT(node, parent) == Py_None ? node : SLOT(node, parent), "..", 2);
    /* From here on lookups are counted: what was counted is sent. */
    Py_ssize_t index = in->offset < 2 ? 0 : in->offset - 2;
    while (going > 0 && index < PyList_GET_SIZE(names)) {
        going = put_child(&page, node, PyList_GET_ITEM(names, index), index + 3, &view);
        index++;
    }
    Py_XDECREF(names);
    Py_XDECREF(node);
    if (going < 0 && !page.used)
        return 0;
    reply(request, 0, buffer, page.used);
    return 1;
}

/* ---- from and to the shim ---- */

/* 1: answered. 0: it is for libfuse, and nothing has happened yet. */
static int answer(int fuse, const void *message, size_t size)
{
    const struct fuse_in_header *in = message;
    struct request request = {fuse, in, (const char *)message + sizeof(*in), size - sizeof(*in)};
    int done = 0;
    switch (in->opcode) {
    case FUSE_LOOKUP:
        done = answer_lookup(&request);
        break;
    case FUSE_FORGET:
        done = answer_forget(&request);
        break;
    case FUSE_BATCH_FORGET:
        done = answer_forgets(&request);
        break;
    case FUSE_GETATTR:
        done = answer_getattr(&request);
        break;
    case FUSE_OPEN:
        done = answer_open(&request);
        break;
    case FUSE_CREATE:
        done = answer_create(&request);
        break;
    case FUSE_READ:
        done = answer_read(&request);
        break;
    case FUSE_WRITE:
        done = answer_write(&request);
        break;
    case FUSE_RELEASE:
        done = answer_release(&request);
        break;
    case FUSE_READDIRPLUS:
        done = answer_readdirplus(&request);
        break;
    }
    if (PyErr_Occurred()) {
        /* The handler meets it again, unless it was answered. */
        if (done)
            PyErr_WriteUnraisable(operations);
        else
            PyErr_Clear();
    }
    return done;
}

/* Wait for the next request, as it usually follows the last answer. 0: there is something else to do. */
static int wait_a_little(int fuse)
{
    struct pollfd more[] = {{fuse, POLLIN, 0}, {shim_other, POLLIN, 0}};
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = poll(more, 2, PATIENCE);
    Py_END_ALLOW_THREADS
    return found > 0 && more[0].revents && !more[1].revents;
}

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

/* Answer from now on: the handlers' object, the classes of nodes and handles, the rights of the disk itself.
 * None, or an exception. */
PyObject *answers_begin(PyObject *given, PyObject *node_type, PyObject *handle_type, PyObject *disk)
{
#define TEXT(name) #name,
    static const char *const node_names[] = {NODE_SLOTS(TEXT)};
    static const char *const handle_names[] = {"node", "token", "writes"};
    Node = (PyTypeObject *)Py_NewRef(node_type);
    Handle = (PyTypeObject *)Py_NewRef(handle_type);
    if (find_slots(Node, node_names, NODE_COUNT, node_offset) < 0 ||
        find_slots(Handle, handle_names, HANDLE_COUNT, handle_offset) < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "nodes are laid out in another way");
        return NULL;
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
    nothing = PyBytes_FromString("");
    no_path = Py_BuildValue("(iO)", -1, nothing);
    PyObject *seconds = PyObject_GetAttrString(given, "_kept");
    kept = seconds ? PyFloat_AsDouble(seconds) : -1;
    Py_XDECREF(seconds);
    seconds = PyObject_GetAttrString(given, "_brief");
    brief = seconds ? PyFloat_AsDouble(seconds) : -1;
    Py_XDECREF(seconds);
    our_uid = geteuid();
    our_gid = getegid();
    if (PyErr_Occurred())
        return NULL;
    shim_answer = answer;
    shim_wait = wait_a_little;
    Py_RETURN_NONE;
}
