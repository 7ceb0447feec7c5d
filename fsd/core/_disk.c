/*
 * Looking at many entries of a directory in one call, without the interpreter's lock: what lists and sweeps spend their
 * time on. fsd.core.disk has the contract, and does the same in Python where this was not compiled.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PACKED 48
#define HANDLE 128
#define LIST 1024
#define LABEL 256
#define BATCH 32
#define LABEL_NAME "user.fsd.id"
#define LISTXATTRAT 465 /* Linux 6.13; the same number everywhere but on alpha */
#define GETXATTRAT 464

/* ---- lstat_all ---- */

struct entry {
    size_t name; /* offset among the names */
    uint32_t length;
    int error;
    char packed[PACKED];
};

struct found {
    struct entry *entries;
    size_t count, room;
    char *names;
    size_t used, space;
};

/* 64 bits of nanoseconds: from 1677 to 2262. What lies beyond becomes the last or the first one (syscalls.clamp_ns). */
static int64_t nanoseconds(int64_t seconds, int64_t rest)
{
    int64_t whole;
    if (__builtin_mul_overflow(seconds, INT64_C(1000000000), &whole) || __builtin_add_overflow(whole, rest, &whole))
        return seconds < 0 ? INT64_MIN : INT64_MAX;
    return whole;
}

static void pack(char *out, const struct stat *st, int sizes_of_all)
{
    uint32_t mode = st->st_mode, nlink = st->st_nlink, uid = st->st_uid, gid = st->st_gid;
    uint64_t ino = st->st_ino, size = sizes_of_all || S_ISREG(st->st_mode) ? st->st_size : 0;
    int64_t mtime = nanoseconds(st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
    int64_t ctime = nanoseconds(st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
    memcpy(out, &mode, 4);
    memcpy(out + 4, &ino, 8);
    memcpy(out + 12, &nlink, 4);
    memcpy(out + 16, &uid, 4);
    memcpy(out + 20, &gid, 4);
    memcpy(out + 24, &size, 8);
    memcpy(out + 32, &mtime, 8);
    memcpy(out + 40, &ctime, 8);
}

/* Room for one entry more; 0, or an error number. */
static int grow(struct found *found, size_t length)
{
    if (found->count == found->room) {
        size_t room = found->room ? 2 * found->room : 256;
        void *more = realloc(found->entries, room * sizeof(struct entry));
        if (!more)
            return ENOMEM;
        found->entries = more;
        found->room = room;
    }
    if (found->used + length > found->space) {
        size_t space = 2 * (found->space + length + 4096);
        void *more = realloc(found->names, space);
        if (!more)
            return ENOMEM;
        found->names = more;
        found->space = space;
    }
    return 0;
}

/* 0, or an error number. */
static int read_all(int dirfd, int sizes_of_all, struct found *found)
{
    char buffer[32768] __attribute__((aligned(16)));
    int failed = 0;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    while (!failed) {
        ssize_t got = getdents64(fd, buffer, sizeof(buffer));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            failed = errno;
        if (got <= 0)
            break;
        for (ssize_t at = 0; at < got && !failed;) {
            struct dirent64 *item = (struct dirent64 *)(buffer + at);
            struct stat st;
            size_t length = strlen(item->d_name);
            at += item->d_reclen;
            if (item->d_name[0] == '.' && (length == 1 || (length == 2 && item->d_name[1] == '.')))
                continue;
            int error = fstatat(fd, item->d_name, &st, AT_SYMLINK_NOFOLLOW) ? errno : 0;
            if (error == ENOENT)
                continue;
            failed = grow(found, length);
            if (failed)
                break;
            struct entry *entry = &found->entries[found->count++];
            entry->name = found->used;
            entry->length = length;
            entry->error = error;
            memcpy(found->names + found->used, item->d_name, length);
            found->used += length;
            if (!error)
                pack(entry->packed, &st, sizes_of_all);
        }
    }
    close(fd);
    return failed;
}

static PyObject *lstat_all(PyObject *module, PyObject *args)
{
    int fd, sizes_of_all, failed;
    struct found found = {0};
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "ip", &fd, &sizes_of_all))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = read_all(fd, sizes_of_all, &found);
    Py_END_ALLOW_THREADS
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        result = PyDict_New();
    }
    for (size_t index = 0; result && index < found.count; index++) {
        struct entry *entry = &found.entries[index];
        PyObject *name = PyBytes_FromStringAndSize(found.names + entry->name, entry->length);
        PyObject *packed = PyBytes_FromStringAndSize(entry->packed, entry->error ? 0 : PACKED);
        if (!name || !packed || PyDict_SetItem(result, name, packed))
            Py_CLEAR(result);
        Py_XDECREF(name);
        Py_XDECREF(packed);
    }
    free(found.entries);
    free(found.names);
    return result;
}

/* ---- facts ---- */

struct fact {
    int error; /* of statx */
    int handle_error, list_error;
    ssize_t list, label; /* lengths; -1: not asked, or not there */
    struct statx st;
    struct {
        struct file_handle head;
        unsigned char data[HANDLE];
    } handle;
    char names[LIST];
    char value[LABEL];
};

struct xattr_args {
    uint64_t value;
    uint32_t size, flags;
};

static int detour; /* the kernel has no listxattrat(2) */

static void path_of(char *out, size_t size, int fd, const char *name)
{
    snprintf(out, size, "/proc/self/fd/%d/%s", fd, name);
}

static ssize_t list_names(int fd, const char *name, char *out)
{
    if (!detour) {
        ssize_t got = syscall(LISTXATTRAT, fd, name, AT_SYMLINK_NOFOLLOW, out, (size_t)LIST);
        if (got >= 0 || (errno != ENOSYS && errno != EPERM))
            return got;
        detour = 1;
    }
    char path[320];
    path_of(path, sizeof(path), fd, name);
    return llistxattr(path, out, LIST);
}

static ssize_t read_label(int fd, const char *name, char *out)
{
    if (!detour) {
        struct xattr_args args = {.value = (uint64_t)(uintptr_t)out, .size = LABEL};
        return syscall(GETXATTRAT, fd, name, AT_SYMLINK_NOFOLLOW, LABEL_NAME, &args, sizeof(args));
    }
    char path[320];
    path_of(path, sizeof(path), fd, name);
    return lgetxattr(path, LABEL_NAME, out, LABEL);
}

static int has_label(const char *names, ssize_t length)
{
    for (ssize_t at = 0; at < length; at += strlen(names + at) + 1)
        if (!strcmp(names + at, LABEL_NAME))
            return 1;
    return 0;
}

static void look(int fd, const char *name, struct fact *fact)
{
    int mount;
    fact->handle_error = fact->list_error = 0;
    fact->list = fact->label = -1;
    fact->error = statx(fd, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &fact->st)
                      ? errno
                      : 0;
    if (fact->error)
        return;
    fact->handle.head.handle_bytes = HANDLE;
    if (name_to_handle_at(fd, name, &fact->handle.head, &mount, 0))
        fact->handle_error = errno;
    if (!S_ISREG(fact->st.stx_mode) && !S_ISDIR(fact->st.stx_mode))
        return;
    fact->list = list_names(fd, name, fact->names);
    if (fact->list < 0)
        fact->list_error = errno;
    else if (has_label(fact->names, fact->list))
        fact->label = read_label(fd, name, fact->value);
}

static long long stamp(const struct statx_timestamp *time)
{
    return nanoseconds(time->tv_sec, time->tv_nsec);
}

static PyObject *bytes_or_error(const char *data, ssize_t length, int error)
{
    if (error)
        return PyLong_FromLong(error);
    if (length < 0)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(data, length);
}

static PyObject *told(const struct fact *fact)
{
    if (fact->error)
        return PyLong_FromLong(fact->error);
    const struct statx *st = &fact->st;
    unsigned long long device = makedev(st->stx_dev_major, st->stx_dev_minor);
    /* As open_by_handle_at(2) wants it: the type, then the bytes. */
    PyObject *handle = bytes_or_error((const char *)&fact->handle.head.handle_type,
                                      4 + (ssize_t)fact->handle.head.handle_bytes, fact->handle_error);
    PyObject *names = bytes_or_error(fact->names, fact->list, fact->list_error);
    PyObject *label = bytes_or_error(fact->value, fact->label, 0);
    if (!handle || !names || !label) {
        Py_XDECREF(handle);
        Py_XDECREF(names);
        Py_XDECREF(label);
        return NULL;
    }
    return Py_BuildValue("(iKKLLLkIIKKNNN)", (int)st->stx_mode, (unsigned long long)st->stx_ino,
                         (unsigned long long)st->stx_size, stamp(&st->stx_mtime),
                         stamp(&st->stx_ctime),
                         st->stx_mask & STATX_BTIME ? stamp(&st->stx_btime) : 0LL,
                         (unsigned long)st->stx_nlink, st->stx_uid, st->stx_gid, device,
                         st->stx_mask & STATX_MNT_ID ? (unsigned long long)st->stx_mnt_id : device, handle, names,
                         label);
}

static PyObject *facts(PyObject *module, PyObject *args)
{
    int fd;
    PyObject *names, *result = NULL;
    struct fact *batch;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO!", &fd, &PyTuple_Type, &names))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    for (Py_ssize_t index = 0; index < count; index++) {
        char *name;
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(names, index), &name, NULL)) /* also if it has a NUL inside */
            return NULL;
    }
    batch = malloc(BATCH * sizeof(struct fact));
    if (!batch)
        return PyErr_NoMemory();
    result = PyList_New(count);
    for (Py_ssize_t start = 0; result && start < count; start += BATCH) {
        const char *each[BATCH];
        int many = count - start < BATCH ? (int)(count - start) : BATCH;
        for (int index = 0; index < many; index++)
            each[index] = PyBytes_AS_STRING(PyTuple_GET_ITEM(names, start + index));
        Py_BEGIN_ALLOW_THREADS
        for (int index = 0; index < many; index++)
            look(fd, each[index], &batch[index]);
        Py_END_ALLOW_THREADS
        for (int index = 0; result && index < many; index++) {
            PyObject *fact = told(&batch[index]);
            if (fact)
                PyList_SET_ITEM(result, start + index, fact);
            else
                Py_CLEAR(result);
        }
    }
    free(batch);
    return result;
}

static PyMethodDef methods[] = {
    {"lstat_all", lstat_all, METH_VARARGS, "See fsd.core.disk.lstat_all."},
    {"facts", facts, METH_VARARGS, "See fsd.core.observe.look_many."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_disk", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__disk(void)
{
    return PyModule_Create(&module);
}
