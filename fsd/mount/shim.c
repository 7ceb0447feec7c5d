/*
 * What pyfuse3 lacks, beside it and without patching it: kernel passthrough, and fallocate, lseek and copy_file_range.
 *
 * Loaded with RTLD_GLOBAL before pyfuse3 is imported, so that pyfuse3's call of fuse_session_new finds the one below.
 * It hands a longer table of operations to the real one and remembers the session. Everything else is public API:
 * after the mount, fuse_session_custom_io puts two functions between libfuse and /dev/fuse. `receive` notes which
 * requests are INIT, OPEN and CREATE; `reply` completes their answers in place: INIT asks for passthrough, OPEN and
 * CREATE carry the backing id that was set (shim_backing) just before. Nothing here allocates or blocks.
 *
 * Where the kernel offers it, set-id bits are taken here (setids.c).
 *
 * Protocol: <linux/fuse.h>, 7.40; the offsets below are its ABI and don't change. libfuse 3.13 to 3.16 (FUSE_USE_VERSION
 * 35); 3.17 knows passthrough itself and has another fuse_session_new: there this file does not compile, on purpose.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>
#include "shim.h"

#if FUSE_VERSION < FUSE_MAKE_VERSION(3, 13) || FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#error "the shim is for libfuse 3.13 to 3.16"
#endif

#define OP_OPEN 14
#define OP_WRITE 16
#define OP_GETXATTR 22
#define OP_INIT 26
#define OP_CREATE 35
#define OP_TMPFILE 51

#define INIT_EXT (1u << 30)
#define KILLPRIV_V2 (1u << 28) /* set-id bits are the daemon's matter: setids.c */
#define KILL_SUIDGID (1u << 2) /* of a write: the caller has no CAP_FSETID */
#define PASSTHROUGH2 (1u << 5) /* FUSE_PASSTHROUGH, 1 << 37, in the second word */
#define FOPEN_PASSTHROUGH_BIT (1u << 7)

#define ACCOUNTED (1ull << 32) /* fsd.mount.files: writes are counted, nothing may go past the daemon */
#define DESCRIPTOR(fi) ((int)((fi)->fh & 0xffffffffu))

struct in_header {
    uint32_t len, opcode;
    uint64_t unique, node;
    uint32_t uid, gid, pid, extensions;
};
struct create_in {
    uint32_t flags, mode;
};
struct write_in {
    uint64_t fh, offset;
    uint32_t size, flags;
};
struct out_header {
    uint32_t len;
    int32_t error;
    uint64_t unique;
};
struct init_in {
    uint32_t major, minor, max_readahead, flags, flags2;
};
struct init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2, max_stack_depth;
};
struct open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};
struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define BACKING_OPEN _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

int shim_backing;      /* the id for the next answer to OPEN or CREATE, 0 for none */
int shim_want;         /* ask for passthrough */
int shim_passthrough;  /* the kernel has it */
static int setids_ours; /* and leaves set-id bits to us */
int shim_other = -1;
int shim_away;         /* a handler waits for something: the event loop wants to hear of it */
int shim_tired;        /* the last `receive` came back to let the event loop do something else */
int (*shim_answer)(int, const void *, size_t);
ssize_t (*shim_read)(int, void *, size_t);

static struct fuse_session *session;
static struct fuse_lowlevel_ops operations;
static void (*init_of_pyfuse3)(void *, struct fuse_conn_info *);

/* Requests whose answers are completed. Handlers run one at a time and these are answered at once, so a few are many. */
#define NOTED 64
static struct {
    uint64_t unique;
    uint32_t opcode;
} noted[NOTED];

/* Asked for at each write; there are none in a mount that is nosuid. Answered here, it costs a tenth. */
static int capability(int fd, const void *buffer, ssize_t got)
{
    static const char name[] = "security.capability";
    const struct in_header *in = buffer;
    if (in->opcode != OP_GETXATTR || got < 48 + (ssize_t)sizeof(name) ||
        memcmp((const char *)buffer + 48, name, sizeof(name)))
        return 0;
    struct out_header out = {.len = sizeof(out), .error = -ENODATA, .unique = in->unique};
    ssize_t sent = write(fd, &out, sizeof(out));
    (void)sent; /* the caller was interrupted, or the mount is gone: the next read says so */
    return 1;
}

/* Before a request is answered: what needs CAP_FSETID has it, and a write by somebody without takes what it takes. */
static void before_answer(const struct in_header *in, ssize_t got)
{
    const struct write_in *write = (const void *)(in + 1);
    const struct create_in *create = (const void *)(in + 1);
    if (in->opcode == OP_WRITE && got >= (ssize_t)(sizeof(*in) + sizeof(*write))) {
        setids_raise();
        if (write->flags & KILL_SUIDGID)
            setids_taken(DESCRIPTOR(write), in->gid, in->pid);
    } else if (in->opcode == OP_CREATE && got >= (ssize_t)(sizeof(*in) + sizeof(*create)) && create->mode & 07000)
        setids_raise();
}

/* fallocate and copy_file_range write, too, and say nothing of capabilities. */
static void before_change(fuse_req_t request, int fd)
{
    const struct fuse_ctx *caller = fuse_req_ctx(request);
    if (setids_ours && caller->uid != 0)
        setids_taken(fd, caller->gid, caller->pid);
}

static void note(struct in_header *in, ssize_t got)
{
    /* The same request but for its name, "/", which nothing else has; and the same answer. */
    if (in->opcode == OP_TMPFILE)
        in->opcode = OP_CREATE;
    if (in->opcode == OP_OPEN || in->opcode == OP_CREATE || in->opcode == OP_INIT) {
        unsigned slot = (in->unique >> 1) % NOTED;
        noted[slot].unique = in->unique;
        noted[slot].opcode = in->opcode;
        if (in->opcode == OP_INIT && got >= (ssize_t)(sizeof(*in) + sizeof(struct init_in))) {
            const struct init_in *init = (const void *)(in + 1);
            setids_ours = !!(init->flags & KILLPRIV_V2);
            shim_passthrough = shim_want && (init->flags & INIT_EXT) && (init->flags2 & PASSTHROUGH2);
        }
    }
}

/* The next request that libfuse has to see; what can be answered here is. */
static ssize_t receive(int fd, void *buffer, size_t size, void *data)
{
    static int ended;
    (void)data;
    shim_tired = 0;
    for (;;) {
        ssize_t got = shim_read ? shim_read(fd, buffer, size) : read(fd, buffer, size);
        if (got < 0 && (errno == EAGAIN || errno == EINTR || !ended++))
            break; /* the end is told the second time: the event loop has to see it first, for its waiting tasks */
        if (got < (ssize_t)sizeof(struct in_header)) {
            setids_raise();
            return got;
        }
        before_answer(buffer, got);
        if (!capability(fd, buffer, got) && !(shim_answer && shim_answer(fd, buffer, got))) {
            setids_raise();
            note(buffer, got);
            return got;
        }
    }
    setids_raise();
    shim_tired = 1;
    errno = EINTR; /* as if nothing had been read: pyfuse3 waits again */
    return -1;
}

static void complete(uint32_t opcode, void *body, size_t size)
{
    if (opcode == OP_INIT && size >= sizeof(struct init_out)) {
        struct init_out *init = body;
        if (setids_ours)
            init->flags |= KILLPRIV_V2;
        if (shim_passthrough) {
            init->flags |= INIT_EXT;
            init->flags2 |= PASSTHROUGH2;
            init->max_stack_depth = 1;
        }
    } else if ((opcode == OP_OPEN || opcode == OP_CREATE) && shim_backing && size >= sizeof(struct open_out)) {
        struct open_out *open = (void *)((char *)body + size - sizeof(struct open_out));
        open->open_flags = (open->open_flags & 1u) | FOPEN_PASSTHROUGH_BIT;
        open->backing_id = shim_backing;
        shim_backing = 0;
    }
}

static ssize_t reply(int fd, struct iovec *pieces, int count, void *data)
{
    const struct out_header *out = pieces[0].iov_base;
    (void)data;
    if (count >= 2 && pieces[0].iov_len == sizeof(*out) && out->unique) {
        unsigned slot = (out->unique >> 1) % NOTED;
        if (noted[slot].opcode && noted[slot].unique == out->unique) {
            if (out->error == 0 && count == 2)
                complete(noted[slot].opcode, pieces[1].iov_base, pieces[1].iov_len);
            noted[slot].opcode = 0;
        }
    }
    ssize_t sent = writev(fd, pieces, count);
    return sent;
}

static void init(void *data, struct fuse_conn_info *connection)
{
    init_of_pyfuse3(data, connection);
    /* pyfuse3 copies what it is given: a pipe in between only costs. */
    connection->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    /* The umask comes along and is applied here: never where the directory has a default ACL. */
    connection->want |= connection->capable & (FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_DONT_MASK);
}

static void do_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset, off_t length,
                         struct fuse_file_info *file)
{
    (void)node;
    if (file->fh & ACCOUNTED) {
        fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    before_change(request, DESCRIPTOR(file));
    fuse_reply_err(request, fallocate(DESCRIPTOR(file), mode, offset, length) ? errno : 0);
}

static void do_lseek(fuse_req_t request, fuse_ino_t node, off_t offset, int whence, struct fuse_file_info *file)
{
    off_t found = lseek(DESCRIPTOR(file), offset, whence);
    (void)node;
    if (found < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_lseek(request, found);
}

static void do_copy_file_range(fuse_req_t request, fuse_ino_t node_in, off_t from, struct fuse_file_info *in,
                               fuse_ino_t node_out, off_t to, struct fuse_file_info *out, size_t length, int flags)
{
    (void)node_in;
    (void)node_out;
    if (out->fh & ACCOUNTED) {
        fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    /* A copy that shares nothing is as slow as the disk, and the mount waits: the caller asks again for the rest. */
    if (length > (8u << 20))
        length = 8u << 20;
    before_change(request, DESCRIPTOR(out));
    ssize_t copied = copy_file_range(DESCRIPTOR(in), &from, DESCRIPTOR(out), &to, length, flags);
    if (copied < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_write(request, copied);
}

/* Takes the place of libfuse's for pyfuse3. */
struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size, void *data)
{
    struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
    void *library = dlopen("libfuse3.so.3", RTLD_LAZY | RTLD_NOLOAD);
    real = library ? dlsym(library, "fuse_session_new") : NULL;
    if (!real || size > sizeof(operations))
        return NULL;
    memset(&operations, 0, sizeof(operations));
    memcpy(&operations, given, size);
    init_of_pyfuse3 = operations.init;
    operations.init = init;
    operations.fallocate = do_fallocate;
    operations.lseek = do_lseek;
    operations.copy_file_range = do_copy_file_range;
    session = real(args, &operations, sizeof(operations), data);
    return session;
}

/* Whether reading waits for a request. 0, or a negative errno. */
int shim_block(int waits)
{
    int fd = fuse_session_fd(session), flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, waits ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

/* After the mount: stand between libfuse and /dev/fuse. 0, or a negative errno. */
int shim_attach(void)
{
    static const struct fuse_custom_io io = {.writev = reply, .read = receive};
    if (!session)
        return -ENOENT;
    int failed = shim_block(0); /* whether there is a request is asked by reading */
    if (failed)
        return failed;
    return fuse_session_custom_io(session, &io, fuse_session_fd(session));
}

/* A backing id for a descriptor, or a negative errno. Writes are made with the credentials of this moment. */
int shim_register(int fd)
{
    struct backing_map map = {.fd = fd};
    int failed = setids_lower(), id = failed ? failed : ioctl(fuse_session_fd(session), BACKING_OPEN, &map);
    return id < 0 && !failed ? -errno : id;
}

/* The same for a handler. */
int shim_register_now(int fd)
{
    int id = shim_register(fd);
    setids_raise();
    return id;
}

void shim_unregister(uint32_t id)
{
    ioctl(fuse_session_fd(session), BACKING_CLOSE, &id);
}
