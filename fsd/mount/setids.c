/*
 * Set-id bits of files whose content changes. The kernel leaves them to the daemon (FUSE_HANDLE_KILLPRIV_V2), and then
 * does not ask for `security.capability` before each write(2).
 *
 * What writing takes is what inode(7) says and the kernel does on a disk: set-user-ID always; set-group-ID if its group
 * may execute the file, else from everybody who is not in the group. Nothing from a caller with CAP_FSETID. Capabilities
 * of a file are taken by the disk's own filesystem, whoever writes.
 *
 * Writes that come to the daemon: the kernel marks those of callers without CAP_FSETID. Writes that don't
 * (passthrough) are made with the credentials the file was registered with: without CAP_FSETID, so the disk's filesystem
 * takes the bits at the first of them, also if they were set since. A file that has some when it is opened is not
 * passed through (fsd.mount.files, answers.c), so that root's writes leave them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shim.h"

#define WORDS _LINUX_CAPABILITY_U32S_3

/* Whether a thread is in a group besides its own; no, if it is gone. */
static int among_groups(pid_t thread, gid_t group)
{
    char path[64], *line = NULL, *at, *end;
    size_t size = 0;
    int found = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)thread);
    FILE *status = fopen(path, "re");
    if (!status)
        return 0;
    while (!found && getline(&line, &size, status) > 0) {
        if (strncmp(line, "Groups:", 7))
            continue;
        for (at = line + 7; !found; at = end) {
            unsigned long each = strtoul(at, &end, 10);
            if (end == at)
                break;
            found = each == group;
        }
        break;
    }
    free(line);
    fclose(status);
    return found;
}

void setids_taken(int fd, gid_t group, pid_t thread)
{
    struct stat found;
    if (fstat(fd, &found) < 0 || !S_ISREG(found.st_mode) || !(found.st_mode & (S_ISUID | S_ISGID)))
        return;
    mode_t lost = found.st_mode & S_ISUID;
    if (found.st_mode & S_ISGID && (found.st_mode & S_IXGRP ||
                                    (group != found.st_gid && !among_groups(thread, found.st_gid))))
        lost |= S_ISGID;
    if (lost && fchmod(fd, found.st_mode & 07777 & ~lost) < 0)
        return; /* as on a disk: a filesystem that is read-only by now refuses the write as well */
}

static struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
static struct __user_cap_data_struct had[WORDS];
static int lowered, death_signal, dumpable;

int setids_lower(void)
{
    struct __user_cap_data_struct less[WORDS];
    if (lowered)
        return 0;
    if (syscall(SYS_capget, &header, had) < 0)
        return -errno;
    memcpy(less, had, sizeof(less));
    less[CAP_TO_INDEX(CAP_FSETID)].effective &= ~CAP_TO_MASK(CAP_FSETID);
    dumpable = prctl(PR_GET_DUMPABLE);
    if (prctl(PR_GET_PDEATHSIG, &death_signal) < 0 || syscall(SYS_capset, &header, less) < 0)
        return -errno;
    lowered = 1;
    return 0;
}

void setids_raise(void)
{
    pid_t parent = death_signal ? getppid() : 0;
    if (!lowered)
        return;
    if (syscall(SYS_capset, &header, had) < 0)
        abort(); /* what is permitted can be had back: capabilities(7) */
    lowered = 0;
    /* Gaining a capability clears both: prctl(2). */
    if (dumpable == 1)
        prctl(PR_SET_DUMPABLE, 1);
    if (death_signal) {
        prctl(PR_SET_PDEATHSIG, death_signal);
        if (getppid() != parent)
            raise(death_signal); /* it died in between */
    }
}
