/* Between shim.c, which reads requests, and answers.c, which answers some of them. */
#include <stddef.h>
#include <stdint.h>

extern int shim_passthrough; /* the kernel has it */
extern int shim_other;       /* a descriptor that is waited for as well, -1 for none */

extern int (*shim_answer)(int fuse, const void *message, size_t size); /* 1: answered; 0: for libfuse, untouched */
extern int (*shim_wait)(int fuse);                                     /* 1: there is a request; 0: go back */

int shim_register(int fd);
void shim_unregister(uint32_t id);
