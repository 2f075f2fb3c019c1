#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* Turns of the waiting loop before a worker sleeps, 20 to 100 us with the processor's pause. */
#define THREADS_SPIN 2000

/* A number that only grows and that workers wait for. */
typedef struct threads_event {
    unsigned count;
    int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} threads_event;

typedef struct threads_worker {
    tc__team *team;
    pthread_t thread;
    int index;
} threads_worker;

struct tc__team {
    int size, spin;
    threads_event start, arrival;
    int arrived; /* workers at the current barrier */
    bool quit;
    void (*task)(void *user, int worker);
    void *user;
    threads_worker workers[]; /* [size]; 0 is the caller */
};

/* ---- waiting ---- */

static void threads_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb"); /* longer than "yield", which most cores ignore */
#endif
}

/* Waits until the event's count is no longer `old`. The order of "sleepers++, look at count" here
 * and "count++, look at sleepers" in threads_advance (both sequentially consistent) makes sure that
 * one of the two sees the other. */
static void threads_wait(threads_event *event, unsigned old, int spin) {
    for (int i = 0; i < spin; i++) {
        if (__atomic_load_n(&event->count, __ATOMIC_ACQUIRE) != old) return;
        threads_pause();
    }
    pthread_mutex_lock(&event->mutex);
    __atomic_add_fetch(&event->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&event->count, __ATOMIC_SEQ_CST) == old)
        pthread_cond_wait(&event->changed, &event->mutex);
    __atomic_sub_fetch(&event->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&event->mutex);
}

static void threads_advance(threads_event *event) {
    __atomic_add_fetch(&event->count, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&event->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&event->mutex);
    pthread_cond_broadcast(&event->changed);
    pthread_mutex_unlock(&event->mutex);
}

static bool threads_event_open(threads_event *event) {
    if (pthread_mutex_init(&event->mutex, NULL)) return false;
    if (pthread_cond_init(&event->changed, NULL) == 0) return true;
    pthread_mutex_destroy(&event->mutex);
    return false;
}

static void threads_event_close(threads_event *event) {
    pthread_cond_destroy(&event->changed);
    pthread_mutex_destroy(&event->mutex);
}

void tc__team_barrier(tc__team *team) {
    if (team->size == 1) return;
    unsigned now = __atomic_load_n(&team->arrival.count, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED); /* published by the advance */
        threads_advance(&team->arrival);
    } else {
        threads_wait(&team->arrival, now, team->spin);
    }
}

/* ---- the team ---- */

static void *threads_main(void *argument) {
    threads_worker *worker = argument;
    tc__team *team = worker->team;
    for (unsigned seen = 0;; seen++) {
        threads_wait(&team->start, seen, team->spin);
        if (team->quit) return NULL;
        team->task(team->user, worker->index);
        tc__team_barrier(team);
    }
}

void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user) {
    team->task = task;
    team->user = user;
    if (team->size > 1) threads_advance(&team->start);
    task(user, 0);
    tc__team_barrier(team);
}

/* Ends and joins the first `started` threads (worker 0 counts as one). */
static void threads_end(tc__team *team, int started) {
    team->quit = true;
    threads_advance(&team->start);
    for (int i = 1; i < started; i++) pthread_join(team->workers[i].thread, NULL);
    threads_event_close(&team->start);
    threads_event_close(&team->arrival);
    free(team);
}

int tc__team_open(int size, tc__team **team, tc_error *err) {
    size_t bytes = sizeof **team + (size_t)size * sizeof(threads_worker);
    tc__team *made = tc__calloc(1, bytes);
    *team = NULL;
    if (!made) return tc__fail_memory(err, "a team of threads", bytes);
    made->size = size;
    /* With more workers than processors the one that is waited for needs the processor. */
    made->spin = size <= tc__processors() ? THREADS_SPIN : 0;
    if (!threads_event_open(&made->start)) {
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    if (!threads_event_open(&made->arrival)) {
        threads_event_close(&made->start);
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    sigset_t all, before; /* signals are for the caller's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1, failure = 0;
    for (; started < size && !failure; started += !failure) {
        threads_worker *worker = &made->workers[started];
        worker->team = made;
        worker->index = started;
        failure = pthread_create(&worker->thread, NULL, threads_main, worker);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure) {
        int refused = started;
        threads_end(made, started);
        return tc__fail(err, TC_ERR_MEMORY,
                        "threads: the system refused thread %d of %d: %s; ask for fewer threads",
                        refused + 1, size, strerror(failure));
    }
    *team = made;
    return tc__ok(err);
}

void tc__team_close(tc__team *team) {
    if (team) threads_end(team, team->size);
}

/* ---- sharing work ---- */

void tc__share(size_t items, int worker, int size, size_t *begin, size_t *end) {
    size_t each = items / (size_t)size, more = items % (size_t)size, w = (size_t)worker;
    *begin = each * w + (w < more ? w : more);
    *end = *begin + each + (w < more);
}

int tc__processors(void) {
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t limits[] = {TC__THREADS_MAX, tc__allowed_processors("/proc/thread-self/status"),
                             tc__group_processors("/proc/self/cgroup", "/sys/fs/cgroup")};
    size_t count = online < 1 ? 1 : (size_t)online;
    for (size_t i = 0; i < TC_COUNT(limits); i++)
        if (limits[i] < count) count = limits[i];
    return (int)count;
}
