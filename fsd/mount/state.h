/*
 * What Python keeps of a mount, for C: Node and Handle objects (fsd.mount.nodes, fsd.mount.files), the dictionaries that
 * lead to them, and what the kernel is told of them. state.c has it, answers.c and hearing.c use it.
 *
 * References are borrowed unless it says otherwise. The interpreter's lock is held.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <sys/stat.h>

#define NODE_SLOTS(X)                                                                                                 \
    X(backing) X(data) X(dead) X(dev) X(direct) X(export) X(fd) X(generation) X(handles) X(id) X(ino) X(is_dir)        \
    X(known) X(lookups) X(name) X(parent) X(path) X(told) X(watch)
#define HANDLE_SLOTS(X) X(h_appends) X(h_node) X(h_token) X(h_writes)
#define ATTRIBUTES(X)                                                                                                 \
    X(gone) X(hidden_ino) X(rights) X(shown) X(limit) X(announcer) X(uid) X(gid) X(directory) X(file) X(executable)     \
    X(check_write) X(opened) X(closed) X(moves) X(_generation) X(_drop) X(names) X(allowed) X(node) X(hides_at)         \
    X(refer_at) X(_names) X(path) X(nameless)

#define ENUM(name) AT_##name,
enum { NODE_SLOTS(ENUM) NODE_COUNT };
enum { HANDLE_SLOTS(ENUM) HANDLE_COUNT };

#pragma GCC visibility push(hidden)

extern Py_ssize_t node_offset[NODE_COUNT], handle_offset[HANDLE_COUNT];
#define SLOT(object, slot) (*(PyObject **)((char *)(object) + node_offset[AT_##slot]))
#define HANDLE(object, slot) (*(PyObject **)((char *)(object) + handle_offset[AT_##slot]))

#define DECLARE(name) extern PyObject *str_##name;
ATTRIBUTES(DECLARE)

extern PyTypeObject *Handle;
extern PyObject *operations, *nodes, *by_id, *by_key, *handles, *listings, *zero;
extern double kept, brief; /* seconds */

/* Find all of this; the arguments of answers_begin. -1: an exception. */
int state_begin(PyObject *given, PyObject *node_type, PyObject *handle_type, PyObject *disk);

void set(PyObject **slot, PyObject *value); /* takes the reference */
long number(PyObject *value);
long attribute(PyObject *owner, PyObject *name);
int is_none(PyObject *owner, PyObject *name);
PyObject *lookup(PyObject *dictionary, uint64_t key);
int64_t nanoseconds(struct timespec time);
PyObject *key_of(const struct stat *found); /* new */

/* What a space shows of the disk's owners and modes. */
struct view {
    int as_it_is, shown;
    uint32_t uid, gid, directory, file, executable;
    uint64_t hidden;
};

int look_at(PyObject *export, struct view *view);
PyObject *known_of(const struct stat *found); /* new: Node.known */
int fill(struct fuse_attr *out, const struct stat *found, PyObject *node, const struct view *view);
void fill_entry(struct fuse_entry_out *out, PyObject *node, double lasting);
double tell(PyObject *parent, PyObject *name, PyObject *id);

PyObject *refer(PyObject *parent, PyObject *name, const struct stat *found);
PyObject *refer_surely(PyObject *parent, PyObject *name, const struct stat *found);
int add_lookups(PyObject *node, long count);
void drop_if_unused(PyObject *node);
void forget(uint64_t id, uint64_t count);
int status(PyObject *node, struct stat *found);
PyObject *path_of(PyObject *directory);

#pragma GCC visibility pop
