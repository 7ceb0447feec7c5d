/*
 * Waiting for requests in read(2) itself, which is as little as it can be, although the event loop has other tasks, too.
 *
 * While requests come, a second thread looks up each millisecond. When none has come meanwhile, when something else is
 * to be done or after some time, it interrupts the waiting read by a signal, and the event loop gets its turn. The signal
 * is sent only while the loop's thread is within that read, or waits for it right behind: no other call of the daemon
 * (an open that makes a file, say) is ever interrupted.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include "shim.h"
#include "turns.h"

#define LOOK 1  /* milliseconds */
#define TURN 5  /* looks */
#define SIGNAL (SIGRTMIN + 7)
#define MOST_TURNS 10000 /* a signal that is lost (RLIMIT_SIGPENDING) is not waited for for ever */

enum { ELSEWHERE, READING, CALLED };

static pthread_t reader;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, back = PTHREAD_COND_INITIALIZER;
static int busy, came; /* requests come; the reader came back from its read. Under `guard`, as is: */
static unsigned sent;  /* signals */
static atomic_uint handled, requests;
static atomic_int where, due;

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&handled, 1);
}

/* The event loop's turn. One signal may be early, between the reader's last look at `due` and its read. */
static void call(void)
{
    int expected = READING;
    pthread_mutex_lock(&guard);
    came = 0;
    atomic_store(&due, 1);
    if (!atomic_compare_exchange_strong(&where, &expected, CALLED))
        came = 1;
    while (!came) {
        struct timespec until;
        sent++;
        pthread_kill(reader, SIGNAL);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&back, &guard, &until);
    }
    pthread_mutex_unlock(&guard);
}

/* The reader is called, but not there any more: wait for the signals that are under way. */
static void come_back(void)
{
    pthread_mutex_lock(&guard);
    came = 1;
    unsigned expected = sent;
    pthread_cond_signal(&back);
    pthread_mutex_unlock(&guard);
    for (int turn = 0; turn < MOST_TURNS && atomic_load(&handled) != expected; turn++)
        sched_yield();
}

static void *look(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "turns");
    for (;;) {
        pthread_mutex_lock(&guard);
        while (!busy)
            pthread_cond_wait(&begun, &guard);
        pthread_mutex_unlock(&guard);
        for (int looks = 0;; looks++) {
            unsigned before = atomic_load(&requests);
            struct pollfd other = {.fd = shim_other, .events = POLLIN};
            if (poll(&other, 1, LOOK) > 0 || atomic_load(&requests) == before || looks == TURN - 1)
                break;
        }
        pthread_mutex_lock(&guard);
        busy = 0;
        pthread_mutex_unlock(&guard);
        call();
    }
    return NULL;
}

/* A turn of ours. */
static void begin(void)
{
    pthread_mutex_lock(&guard);
    int sleeps = !busy;
    busy = 1;
    pthread_mutex_unlock(&guard);
    if (sleeps)
        pthread_cond_signal(&begun);
}

static ssize_t read_in_turn(int fuse, void *buffer, size_t size)
{
    static int beginning = 1;
    ssize_t got = -1;
    int error = EINTR;
    if (shim_away) {
        struct pollfd request = {.fd = fuse, .events = POLLIN};
        if (poll(&request, 1, 0) <= 0) {
            errno = EINTR;
            return -1;
        }
    }
    if (beginning)
        begin();
    beginning = 0;
    atomic_store(&where, READING);
    if (!atomic_load(&due)) {
        Py_BEGIN_ALLOW_THREADS
        got = read(fuse, buffer, size);
        error = errno;
        Py_END_ALLOW_THREADS
    }
    if (atomic_exchange(&where, ELSEWHERE) == CALLED)
        come_back();
    atomic_fetch_add(&requests, 1);
    if (got < 0 && error == EINTR) {
        atomic_store(&due, 0);
        beginning = 1;
    }
    errno = error;
    return got;
}

int turns_begin(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t all, before;
    pthread_t thread;
    reader = pthread_self();
    if (sigaction(SIGNAL, &action, NULL) < 0)
        return -errno;
    int failed = shim_block(1);
    if (failed)
        return failed;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = -pthread_create(&thread, NULL, look, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        shim_block(0);
        return failed;
    }
    pthread_detach(thread);
    shim_read = read_in_turn;
    return 0;
}
