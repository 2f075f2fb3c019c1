#include "threads.h"

#include <signal.h>
#include <unistd.h>

/* Turns of the waiting loop before a thread sleeps, 20 to 100 us with the processor's pause. */
#define THREADS_SPIN 2000

typedef struct threads_worker {
    tc__team *team;
    pthread_t thread;
    int index;
} threads_worker;

struct tc__team {
    int size;
    tc__count start, arrival;
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

static bool threads_reached(const tc__count *count, unsigned least, int order) {
    return (int)(__atomic_load_n(&count->value, order) - least) >= 0;
}

/* The order of "sleepers++, look at the value" here and "value += n, look at sleepers" in
 * tc__count_add (both sequentially consistent) makes sure that one of the two sees the other. */
void tc__count_wait(tc__count *count, unsigned least) {
    for (int i = 0; i < count->spin; i++) {
        if (threads_reached(count, least, __ATOMIC_ACQUIRE)) return;
        threads_pause();
    }
    pthread_mutex_lock(&count->mutex);
    __atomic_add_fetch(&count->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!threads_reached(count, least, __ATOMIC_SEQ_CST))
        pthread_cond_wait(&count->changed, &count->mutex);
    __atomic_sub_fetch(&count->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&count->mutex);
}

void tc__count_add(tc__count *count, unsigned n) {
    __atomic_add_fetch(&count->value, n, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&count->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&count->mutex);
    pthread_cond_broadcast(&count->changed);
    pthread_mutex_unlock(&count->mutex);
}

bool tc__count_open(tc__count *count, int threads) {
    memset(count, 0, sizeof *count);
    /* With more threads than processors the one that is waited for needs the processor. */
    count->spin = threads <= tc__processors() ? THREADS_SPIN : 0;
    if (pthread_mutex_init(&count->mutex, NULL)) return false;
    if (pthread_cond_init(&count->changed, NULL) == 0) return true;
    pthread_mutex_destroy(&count->mutex);
    return false;
}

void tc__count_close(tc__count *count) {
    pthread_cond_destroy(&count->changed);
    pthread_mutex_destroy(&count->mutex);
}

void tc__team_barrier(tc__team *team) {
    if (team->size == 1) return;
    unsigned now = __atomic_load_n(&team->arrival.value, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED); /* published by the advance */
        tc__count_add(&team->arrival, 1);
    } else {
        tc__count_wait(&team->arrival, now + 1);
    }
}

/* ---- the team ---- */

static void *threads_main(void *argument) {
    threads_worker *worker = argument;
    tc__team *team = worker->team;
    for (unsigned task = 1;; task++) {
        tc__count_wait(&team->start, task);
        if (team->quit) return NULL;
        team->task(team->user, worker->index);
        tc__team_barrier(team);
    }
}

void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user) {
    team->task = task;
    team->user = user;
    if (team->size > 1) tc__count_add(&team->start, 1);
    task(user, 0);
    tc__team_barrier(team);
}

/* Ends and joins the first `started` threads (worker 0 counts as one). */
static void threads_end(tc__team *team, int started) {
    team->quit = true;
    tc__count_add(&team->start, 1);
    for (int i = 1; i < started; i++) pthread_join(team->workers[i].thread, NULL);
    tc__count_close(&team->start);
    tc__count_close(&team->arrival);
    free(team);
}

int tc__team_open(int size, tc__team **team, tc_error *err) {
    size_t bytes = sizeof **team + (size_t)size * sizeof(threads_worker);
    tc__team *made = tc__calloc(1, bytes);
    *team = NULL;
    if (!made) return tc__fail_memory(err, "a team of threads", bytes);
    made->size = size;
    if (!tc__count_open(&made->start, size)) {
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    if (!tc__count_open(&made->arrival, size)) {
        tc__count_close(&made->start);
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
