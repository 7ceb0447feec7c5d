/* Between shim.c, which reads requests, and what answers some of them. */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

extern int shim_passthrough; /* the kernel has it */
extern int shim_away;        /* handlers of Python's that wait for something: the event loop wants to hear of it */
extern int shim_other;       /* a descriptor that is waited for as well, -1 for none */

/* 1: answered; 0: for libfuse, untouched. */
extern int (*shim_answer)(int fuse, const void *message, size_t size);
/* read(2), which may wait; EINTR: the event loop has something else to do. */
extern ssize_t (*shim_read)(int fuse, void *buffer, size_t size);

/* Take the set-id bits that a write takes from a caller without CAP_FSETID; by its group and thread. */
void setids_taken(int fd, gid_t group, pid_t thread);
/* This thread without CAP_FSETID, as long as it answers requests that have no use for it. 0, or a negative errno. */
int setids_lower(void);
/* And with it again: before anything else. */
void setids_raise(void);

int shim_block(int waits);
int shim_register(int fd); /* lowers */
void shim_unregister(uint32_t id);
