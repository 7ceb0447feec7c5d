/*
 * The requests that programs make by the thousand, answered where they are read: LOOKUP, FORGET, GETATTR, GETXATTR,
 * OPEN, CREATE, READ, WRITE, RELEASE and READDIRPLUS. Compiled together with shim.c, which calls `answer` with each.
 *
 * The state is Python's own: Node and Handle objects and the dictionaries of fsd.mount.nodes, whose invariants hold
 * here as well. Each function does what the handler of the same name does, in its common case, and says "not mine" (0)
 * before it has changed anything in every other: names with a dot, internals, roles, quotas, what has several names or
 * an old number, and all errors but that a name or an attribute is not there. The handlers then see the request as if
 * this file did not exist.
 *
 * Called by the event loop's thread with the interpreter's lock held, which is given away only to wait.
 */
#define _GNU_SOURCE
#include "state.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "shim.h"
#include "turns.h"

#define INLINE (1 << 14)      /* fsd.mount.files: bytes that are read at once */
#define MOST_READ (1 << 20)
#define PASSED (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC | O_NOATIME | O_DIRECT) /* fsd.mount.files */
#define PASSTHROUGH (1u << 7) /* FOPEN_PASSTHROUGH, newer than some headers */

static uid_t our_uid;
static gid_t our_gid;
static char buffer[MOST_READ];

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
    int set_ids = found->st_mode & (S_ISUID | S_ISGID); /* see setids.c */
    if (token && shim_passthrough && (backing > 0 || (PyList_GET_SIZE(open) == 0 && !set_ids))) {
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
        HANDLE(handle, h_appends) = Py_NewRef(Py_False); /* counts where there is a quota */
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

/* files.open_regular, with the attributes; -1: the handler has to do it. */
static int open_regular(long where, const char *name, int flags, mode_t mode, struct stat *found)
{
    int fd = openat(where, name, flags | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd >= 0 && (fstat(fd, found) < 0 || !S_ISREG(found->st_mode))) {
        close(fd);
        return -1;
    }
    if (fd >= 0)
        fcntl(fd, F_SETFL, flags);
    return fd;
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
    int fd = where < 0 ? -1 : open_regular(where, PyBytes_AS_STRING(SLOT(node, name)), passed, 0, &found);
    if (fd < 0)
        return 0;
    if (found.st_ino != PyLong_AsUnsignedLongLong(SLOT(node, ino)) ||
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
    if (where < 0)
        return 0;
    umask(in->umask); /* the disk's kernel knows whether a default ACL stands for it */
    int fd = open_regular(where, text, passed | O_CREAT, in->mode & 07777, &found);
    umask(0);
    if (fd < 0)
        return 0;
    PyObject *name = PyBytes_FromString(text), *node = NULL, *key = NULL;
    if (name && (key = key_of(&found))) {
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
    PyObject *nameless = PyObject_GetAttr(SLOT(HANDLE(handle, h_node), export), str_nameless);
    int odd = !nameless || PyObject_IsTrue(nameless);
    Py_XDECREF(nameless);
    if (odd)
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
            set(&SLOT(node, known), known_of(&found));
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
        if (more < 0 && errno != EINTR) {
            reply(request, errno, NULL, 0);
            return 1;
        }
        done += more < 0 ? 0 : more;
    }
    struct fuse_write_out out = {.size = done};
    reply(request, 0, &out, sizeof(out));
    return 1;
}

/* ---- attributes ---- */

#define ACL "system.posix_acl_"
#define OURS "user.fsd."

static int starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Nodes.reach, by name: a descriptor of the caller's own, -1 if the handler has to do it. */
static int reach(PyObject *node)
{
    long fd = number(SLOT(node, fd));
    struct stat found;
    if (fd < 0 && PyList_GET_SIZE(SLOT(node, handles)) > 0)
        fd = number(PyList_GET_ITEM(SLOT(node, handles), 0));
    if (fd >= 0)
        return fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (SLOT(node, parent) == Py_None || (fd = number(SLOT(SLOT(node, parent), fd))) < 0)
        return -1;
    int own = openat(fd, PyBytes_AS_STRING(SLOT(node, name)), O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (own >= 0 && (fstat(own, &found) < 0 || found.st_ino != PyLong_AsUnsignedLongLong(SLOT(node, ino)) ||
                     found.st_dev != PyLong_AsUnsignedLongLong(SLOT(node, dev)))) {
        close(own);
        return -1;
    }
    return own;
}

/* Asked by `ls -l` for each file (ACLs), and by the kernel before each write (capabilities). */
static int answer_getxattr(const struct request *request)
{
    const struct fuse_getxattr_in *in = (const void *)request->body;
    const char *name = request->body + sizeof(*in);
    PyObject *node = lookup(by_id, request->in->nodeid);
    struct view view;
    char path[32];
    if (strcmp(name, "security.capability") == 0) {
        reply(request, ENODATA, NULL, 0);
        return 1;
    }
    if (!node || starts(name, OURS) || (starts(name, "system.") && !starts(name, ACL)) ||
        look_at(SLOT(node, export), &view) < 0 || !view.as_it_is || in->size > sizeof(buffer))
        return 0;
    int fd = reach(node);
    if (fd < 0)
        return 0;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t got = getxattr(path, name, in->size ? buffer : NULL, in->size);
    int failed = got < 0 ? errno : 0;
    close(fd);
    if (failed && failed != ENODATA && failed != EOPNOTSUPP)
        return 0;
    struct fuse_getxattr_out out = {.size = got};
    if (failed || in->size)
        reply(request, failed, buffer, failed ? 0 : got);
    else
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
    case FUSE_GETXATTR:
        done = answer_getxattr(&request);
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

/* Answer from now on: the handlers' object, the classes of nodes and handles, the rights of the disk itself.
 * None, or an exception. */
PyObject *answers_begin(PyObject *given, PyObject *node_type, PyObject *handle_type, PyObject *disk)
{
    /* The umask becomes this thread's own, so that it can be the caller's for the moment of a create. */
    if (unshare(CLONE_FS) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (state_begin(given, node_type, handle_type, disk) < 0)
        return NULL;
    int failed = turns_begin();
    if (failed) {
        errno = -failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    our_uid = geteuid();
    our_gid = getegid();
    shim_answer = answer;
    Py_RETURN_NONE;
}
