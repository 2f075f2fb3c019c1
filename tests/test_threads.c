/* The team of workers: every worker runs, barriers order their writes, idle teams sleep. */
#include "src/threads.h"
#include "test.h"

#include <time.h>
#include <unistd.h>

static const int sizes[] = {1, 2, 3, 5, 16};

#define STEPS 2000

typedef struct relay {
    tc__team *team;
    int size, failed;
    int runs[16];          /* per worker */
    unsigned place[2][16]; /* written in one step, read by all in the next */
} relay;

/* Each step every worker writes step + its index and checks what all the others wrote before. */
static void relay_run(void *user, int worker) {
    relay *r = user;
    r->runs[worker]++;
    for (unsigned step = 0; step < STEPS; step++) {
        r->place[step % 2][worker] = step + (unsigned)worker;
        tc__team_barrier(r->team);
        for (int other = 0; other < r->size; other++)
            if (r->place[step % 2][other] != step + (unsigned)other)
                __atomic_add_fetch(&r->failed, 1, __ATOMIC_RELAXED);
    }
}

TEST(barriers_order_the_workers) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        relay r = {0};
        tc_error err;
        r.size = sizes[i];
        REQUIRE(tc__team_open(sizes[i], &r.team, &err) == TC_OK);
        for (int turn = 1; turn <= 3; turn++) {
            tc__team_run(r.team, relay_run, &r);
            for (int worker = 0; worker < sizes[i]; worker++) CHECK(r.runs[worker] == turn);
        }
        CHECK_MSG(r.failed == 0, "%d wrong reads with %d workers", r.failed, sizes[i]);
        tc__team_close(r.team);
    }
}

static void count_run(void *user, int worker) {
    (void)worker;
    __atomic_add_fetch((int *)user, 1, __ATOMIC_RELAXED);
}

TEST(many_short_tasks) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        tc__team *team;
        int count = 0;
        REQUIRE(tc__team_open(sizes[i], &team, NULL) == TC_OK);
        for (int turn = 1; turn <= 500; turn++) {
            tc__team_run(team, count_run, &count);
            CHECK_MSG(count == turn * sizes[i], "%d runs after %d tasks of %d", count, turn,
                      sizes[i]);
        }
        tc__team_close(team);
    }
}

/* A ring of places that worker 0 empties and each of the others fills a part of. */
enum { PLACES = 3, ROUNDS = 4000 };
typedef struct ring {
    int fillers, wrong;
    unsigned place[PLACES][16];
    tc__count filled[PLACES], room;
} ring;

static void ring_run(void *user, int worker) {
    ring *r = user;
    for (unsigned n = 0; n < ROUNDS; n++) {
        unsigned *place = r->place[n % PLACES];
        if (worker > 0) {
            tc__count_wait(&r->room, n + 1);
            place[worker] = n + (unsigned)worker;
            tc__count_add(&r->filled[n % PLACES], 1);
            continue;
        }
        tc__count_wait(&r->filled[n % PLACES], (n / PLACES + 1) * (unsigned)r->fillers);
        for (int w = 1; w <= r->fillers; w++) r->wrong += place[w] != n + (unsigned)w;
        tc__count_add(&r->room, 1);
    }
}

TEST(counts_order_a_ring) {
    for (size_t i = 1; i < sizeof sizes / sizeof *sizes; i++) {
        ring r = {0};
        tc__team *team;
        r.fillers = sizes[i] - 1;
        REQUIRE(tc__team_open(sizes[i], &team, NULL) == TC_OK);
        for (int p = 0; p < PLACES; p++) REQUIRE(tc__count_open(&r.filled[p], sizes[i]));
        REQUIRE(tc__count_open(&r.room, sizes[i]));
        tc__count_add(&r.room, PLACES);
        tc__team_run(team, ring_run, &r);
        CHECK_MSG(r.wrong == 0, "%d wrong reads with %d fillers", r.wrong, r.fillers);
        CHECK(r.room.value == PLACES + ROUNDS);
        for (int p = 0; p < PLACES; p++) tc__count_close(&r.filled[p]);
        tc__count_close(&r.room);
        tc__team_close(team);
    }
}

static double processor_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void doze(long milliseconds) {
    struct timespec time = {0, milliseconds * 1000000};
    nanosleep(&time, NULL);
}

/* Worker 0 comes late to a barrier; the others must not burn a processor meanwhile. */
static void late_run(void *user, int worker) {
    if (worker == 0) doze(300);
    tc__team_barrier(user);
}

TEST(idle_teams_sleep) {
    tc__team *team;
    int count = 0;
    REQUIRE(tc__team_open(2, &team, NULL) == TC_OK);
    tc__team_run(team, count_run, &count);
    double start = processor_seconds();
    doze(300);
    double idle = processor_seconds() - start;
    CHECK_MSG(idle < 0.1, "%.3f s of processor time in 0.3 s between tasks", idle);
    start = processor_seconds();
    tc__team_run(team, late_run, team);
    idle = processor_seconds() - start;
    CHECK_MSG(idle < 0.1, "%.3f s of processor time in 0.3 s at a barrier", idle);
    tc__team_close(team);
}

TEST(shares_cover_everything_once) {
    for (size_t items = 0; items < 40; items++)
        for (int size = 1; size <= 17; size++) {
            size_t next = 0, least = SIZE_MAX, most = 0;
            for (int worker = 0; worker < size; worker++) {
                size_t begin, end;
                tc__share(items, worker, size, &begin, &end);
                CHECK(begin == next && end >= begin);
                next = end;
                if (end - begin < least) least = end - begin;
                if (end - begin > most) most = end - begin;
            }
            CHECK(next == items && most - least <= 1);
        }
}

TEST_MAIN(RUN(barriers_order_the_workers) RUN(many_short_tasks) RUN(counts_order_a_ring)
              RUN(idle_teams_sleep) RUN(shares_cover_everything_once))
