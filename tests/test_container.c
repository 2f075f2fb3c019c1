/* The limits of containers, with control groups of both versions made of files here. */
#include "src/threads.h"
#include "program.h"
#include "test.h"

static char folder[PROGRAM_PATH];

/* Writes a file below the folder, whose folders it makes. */
static void write_text(const char *name, const char *text) {
    char path[2 * PROGRAM_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (char *slash = path + strlen(folder) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0);
    if (file) fclose(file);
}

static size_t limit(size_t (*of)(const char *groups, const char *root), const char *groups) {
    char path[2 * PROGRAM_PATH];
    write_text("groups", groups);
    snprintf(path, sizeof path, "%s/groups", folder);
    return of(path, folder);
}
static size_t room(const char *groups) {
    return limit(tc__group_memory, groups);
}
static size_t processors(const char *groups) {
    return limit(tc__group_processors, groups);
}

TEST(version_2) {
    static const char *const deep = "0::/a/b\n";
    CHECK(room(deep) == SIZE_MAX);
    write_text("a/b/memory.max", "max\n");
    write_text("a/b/memory.current", "5000\n");
    CHECK(room(deep) == SIZE_MAX);
    write_text("a/b/memory.max", "9000\n");
    CHECK(room(deep) == 4000);
    /* files that are cached can go */
    write_text("a/b/memory.stat", "anon 1\nfile 2900\ninactive_file 1000\nactive_file 200\n");
    CHECK(room(deep) == 5200);
    write_text("a/b/memory.current", "20000\n");
    CHECK(room(deep) == 0);
    write_text("a/b/memory.current", "100\n"); /* less than the cache, which is counted apart */
    CHECK(room(deep) == 9000);
    /* the group around it is narrower */
    write_text("a/memory.max", "7000\n");
    write_text("a/memory.current", "6000\n");
    CHECK(room(deep) == 1000);
    CHECK(room("0::/a\n") == 1000);
    CHECK(room("0::/\n") == SIZE_MAX);
    /* in a container that sees the host's names, its own group is the root */
    write_text("memory.max", "600\n");
    write_text("memory.current", "200\n");
    CHECK(room("0::/docker/0123\n") == 400);
    CHECK(room("0::/\n") == 400);
}

TEST(version_1) {
    write_text("memory/c/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    write_text("memory/c/memory.usage_in_bytes", "100\n");
    CHECK(room("5:cpu,cpuacct:/a\n4:memory:/c\n1:name=systemd:/x\n") > (size_t)1 << 62);
    write_text("memory/c/memory.limit_in_bytes", "8000\n");
    write_text("memory/c/memory.stat", "inactive_file 7\ntotal_inactive_file 30\n"
                                       "total_active_file 10\n");
    CHECK(room("5:cpu,cpuacct:/a\n4:memory:/c\n1:name=systemd:/x\n") == 7940);
    CHECK(room("5:cpu,cpuacct:/c\n") == SIZE_MAX);
}

TEST(processors_of_both_versions) {
    CHECK(processors("0::/a/b\n") == SIZE_MAX);
    write_text("a/b/cpu.max", "max 100000\n");
    CHECK(processors("0::/a/b\n") == SIZE_MAX);
    write_text("a/b/cpu.max", "350000 100000\n");
    CHECK(processors("0::/a/b\n") == 3);
    write_text("a/cpu.max", "20000 100000\n"); /* a fifth of one, in the group around it */
    CHECK(processors("0::/a/b\n") == 1);
    write_text("cpu/c/cpu.cfs_quota_us", "-1\n");
    write_text("cpu/c/cpu.cfs_period_us", "100000\n");
    CHECK(processors("5:cpuset,cpuacct:/a\n4:cpu,cpuacct:/c\n") == SIZE_MAX);
    write_text("cpu/c/cpu.cfs_quota_us", "400000\n");
    CHECK(processors("5:cpuset,cpuacct:/a\n4:cpuacct,cpu:/c\n") == 4);
    CHECK(processors("5:cpuset,cpuacct:/c\n") == SIZE_MAX);
}

TEST(processors_that_a_thread_may_use) {
    char path[2 * PROGRAM_PATH];
    snprintf(path, sizeof path, "%s/status", folder);
    CHECK(tc__allowed_processors(path) == SIZE_MAX);
    write_text("status", "Name:\tx\nCpus_allowed_list:\t0-3\n");
    CHECK(tc__allowed_processors(path) == SIZE_MAX);
    write_text("status", "Name:\tx\nCpus_allowed:\tff000000,00000013\nMems_allowed:\t1\n");
    CHECK(tc__allowed_processors(path) == 11);
    CHECK(tc__allowed_processors("/proc/thread-self/status") >= (size_t)tc__processors());
    CHECK(tc__processors() >= 1 && tc__processors() <= TC__THREADS_MAX);
}

TEST(what_is_no_group_is_no_limit) {
    CHECK(tc__group_processors("/nonexistent", "/nonexistent") == SIZE_MAX);
    CHECK(tc__group_memory("/nonexistent", "/nonexistent") == SIZE_MAX);
    CHECK(room("") == SIZE_MAX);
    CHECK(room("nonsense\n:\n") == SIZE_MAX);
    CHECK(tc__available_memory() > 0);
}

static void remove_all(void) {
    static const char *const folders[] = {"/a/b",   "/a",   "/memory/c", "/memory",
                                          "/cpu/c", "/cpu", ""};
    char path[PROGRAM_PATH];
    for (size_t i = 0; i < TC_COUNT(folders); i++) {
        snprintf(path, sizeof path, "%.400s%s", folder, folders[i]);
        program_remove_folder(path);
    }
}

TEST(prepare) {
    REQUIRE(program_folder(folder));
}
TEST(nothing_is_left_behind) {
    struct stat st;
    remove_all();
    CHECK(stat(folder, &st) != 0);
}

TEST_MAIN(RUN(prepare) RUN(version_2) RUN(version_1) RUN(processors_of_both_versions)
              RUN(processors_that_a_thread_may_use) RUN(what_is_no_group_is_no_limit)
                  RUN(nothing_is_left_behind))
