/* program - what tests of whole programs share: running one, and a folder for its files.
 */
#ifndef TEST_PROGRAM_H
#define TEST_PROGRAM_H

#include "src/base.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM_PATH 512 /* room for a path that a test makes up */

/* The programs under test: tests/run.sh names those of the build that is tested. */
static inline const char *program_convert(void) {
    const char *path = getenv("TINYCHAT_CONVERT");
    return path ? path : "convert/convert";
}

static inline const char *program_chat(void) {
    const char *path = getenv("TINYCHAT_CHAT");
    return path ? path : "./chat";
}

/* tmpfile(), but in $TMPDIR, as program_folder. NULL if that fails. */
static inline FILE *program_temporary(void) {
    const char *parent = getenv("TMPDIR");
    char path[PROGRAM_PATH];
    snprintf(path, sizeof path, "%s/tinychat-output-XXXXXX", parent ? parent : "/tmp");
    const int fd = mkstemp(path);
    if (fd >= 0) unlink(path);
    return fd < 0 ? NULL : fdopen(fd, "w+b");
}

/* Runs argv (NULL-terminated, at most 20) through $TEST_WRAPPER, which names an emulator in cross
 * builds, with an empty stdin. What it writes is kept as text: stdout in out, stderr in messages
 * (either may be NULL), each cut to its size. Returns the exit status, 128 + signal when a signal
 * ended it, -1 if it could not be run. */
static inline int program_run(const char *const *argv, char *out, size_t out_size, char *messages,
                              size_t messages_size) {
    const char *shell[26] = {"sh", "-c", "exec $TEST_WRAPPER \"$@\"", "sh"};
    FILE *files[2] = {program_temporary(), program_temporary()};
    char *texts[2];
    size_t sizes[2], n = 4;
    int status = -1, i;
    pid_t child;
    while (*argv && n < TC_COUNT(shell) - 1) shell[n++] = *argv++;
    child = files[0] && files[1] ? fork() : -1;
    if (child == 0) {
        int nothing = open("/dev/null", O_RDONLY);
        if (dup2(nothing, 0) < 0 || dup2(fileno(files[0]), 1) < 0 || dup2(fileno(files[1]), 2) < 0)
            _exit(127);
        execv("/bin/sh", (char *const *)shell);
        _exit(127);
    }
    if (child > 0 && waitpid(child, &status, 0) == child)
        status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    texts[0] = out, texts[1] = messages;
    sizes[0] = out_size, sizes[1] = messages_size;
    for (i = 0; i < 2; i++) {
        if (files[i] && texts[i]) {
            rewind(files[i]);
            texts[i][fread(texts[i], 1, sizes[i] - 1, files[i])] = 0;
        }
        if (files[i]) fclose(files[i]);
    }
    return status;
}

/* Makes an empty folder for temporary files. False if that fails. */
static inline bool program_folder(char path[PROGRAM_PATH]) {
    const char *parent = getenv("TMPDIR");
    snprintf(path, PROGRAM_PATH, "%s/tinychat-program-XXXXXX", parent ? parent : "/tmp");
    return mkdtemp(path) != NULL;
}

/* Removes a folder that holds files only, and the files. */
static inline void program_remove_folder(const char *path) {
    DIR *dir = opendir(path);
    struct dirent *entry;
    char file[2 * PROGRAM_PATH];
    if (!dir) return;
    while ((entry = readdir(dir)) != NULL) {
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) unlink(file);
    }
    closedir(dir);
    rmdir(path);
}

#endif /* TEST_PROGRAM_H */
