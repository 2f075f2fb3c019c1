/* threads - a team of workers, for a session's computations or for loading, and numbers that they
 * wait for.
 *
 * One task at a time runs on all workers at once; inside it the workers keep step with a barrier.
 * A waiting thread spins for some tens of microseconds (a barrier then costs about one) and sleeps
 * after that, so an idle team uses no processor time. The caller is worker 0: a team of one has no
 * thread of its own and every call below is then a plain function call.
 */
#ifndef TC_THREADS_H
#define TC_THREADS_H

#include "base.h"

#include <pthread.h>

#define TC__THREADS_MAX 512

/* A number that only grows, from 0, and that threads wait for, as workers do for each other. */
typedef struct tc__count {
    unsigned value;
    int sleepers, spin;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} tc__count;

/* threads: how many will use it. False: the system has no more mutexes; then nothing is held. */
TC_INTERNAL bool tc__count_open(tc__count *count, int threads);
TC_INTERNAL void tc__count_close(tc__count *count);
/* What a thread wrote before it adds is visible to those that wait for the sum. */
TC_INTERNAL void tc__count_add(tc__count *count, unsigned n);
/* Returns when it is `least` or more, by less than 2^31. */
TC_INTERNAL void tc__count_wait(tc__count *count, unsigned least);

typedef struct tc__team tc__team;

/* Starts a team of 1 <= size <= TC__THREADS_MAX workers: size - 1 threads, which block all signals.
 * On failure nothing is held. Errors: MEMORY. */
TC_INTERNAL int tc__team_open(int size, tc__team **team, tc_error *err);
/* Ends the threads. NULL is allowed. No task may be running. */
TC_INTERNAL void tc__team_close(tc__team *team);

/* Runs task(user, worker) on every worker 0 .. size-1 and returns when all are done. Called by one
 * thread at a time; not from inside a task. */
TC_INTERNAL void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user);

/* Inside a task, by every worker the same number of times: returns when all have arrived. What a
 * worker wrote before is visible to all after. */
TC_INTERNAL void tc__team_barrier(tc__team *team);

/* The share of worker `worker` of `size` in `items` things: [*begin, *end), contiguous, sizes
 * differing by at most one. */
TC_INTERNAL void tc__share(size_t items, int worker, int size, size_t *begin, size_t *end);

/* The processors that are online, that this thread may run on (taskset, a container's cpuset) and
 * whose time the control groups leave; at least 1, at most TC__THREADS_MAX. */
TC_INTERNAL int tc__processors(void);

#endif /* TC_THREADS_H */
