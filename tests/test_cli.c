/* test_cli - ./chat as a person or a script meets it: flags, pipes, exit codes, signals, and a
 * terminal (a pseudo-terminal, so that no tool but the C library is needed).
 *
 * The model is written by this program and is a list of scripts: every token has one successor (or
 * several equally likely ones), so that the last character of a message decides the whole reply.
 * Its embedding is the identity, its one layer adds nothing, and column i of its head is 2 for the
 * successors of token i: after RMS norm the logit of a successor is 2 sqrt(hidden).
 */
#define _XOPEN_SOURCE 700

#include "test.h"

#include "convert/writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* ---- the model of scripts ---- */

enum { HIDDEN = 320, FIRST_BYTE = 3, SPACE = 259, FIRST_PIECE = 260, EOS = 2, MAX_SEQ = 16384 };

#define ESCAPES "\033[31mred\177\r\302\233\342\200\256\tend"
#define LOOP "la la la la la la la la la "

/* A message that ends in `last` gets these pieces; a piece with loop = n is followed by any of the
 * n pieces that end with itself. */
static const struct {
    char last;
    const char *pieces[5];
} scripts[] = {
    {'h', {"Hello", " there", "."}}, {'e', {ESCAPES}}, {'n', {"line\nend\n"}},
    {'t', {"one ST", "OP two"}},     {'l', {LOOP}},    {'u', {"\342", "\202", "\254", "uro"}},
};

static char texts[HIDDEN][64];        /* of the pieces */
static int32_t successors[HIDDEN][4]; /* 0-terminated */
static int vocab;
static char folder[256], model_path[300];

static int32_t add_piece(const char *text) {
    snprintf(texts[vocab], sizeof texts[vocab], "%s", text);
    return vocab++;
}

static void build_scripts(void) {
    vocab = 0;
    add_piece("<unk>");
    add_piece("<s>");
    add_piece("</s>");
    for (int i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", i);
        add_piece(text);
    }
    add_piece("\342\226\201");
    for (size_t s = 0; s < TC_COUNT(scripts); s++) {
        int32_t at = FIRST_BYTE + scripts[s].last;
        for (int p = 0; p < 5 && scripts[s].pieces[p]; p++) {
            const char *text = scripts[s].pieces[p];
            unsigned char byte = (unsigned char)text[0];
            int32_t id = byte >= 0x80 && !text[1] ? FIRST_BYTE + byte : add_piece(text);
            successors[at][0] = id;
            at = id;
        }
        successors[at][0] = scripts[s].last == 'l' ? at : EOS;
    }
    /* 'r': random syllables without an end */
    int32_t ba = add_piece("[ba]"), du = add_piece("[du]"), ki = add_piece("[ki]");
    int32_t from[] = {FIRST_BYTE + 'r', ba, du, ki};
    for (size_t i = 0; i < TC_COUNT(from); i++) {
        successors[from[i]][0] = ba;
        successors[from[i]][1] = du;
        successors[from[i]][2] = ki;
    }
    for (int i = 0; i < vocab; i++)
        if (!successors[i][0]) successors[i][0] = EOS;
}

static void put_u32(writer *w, const char *key, uint32_t value) {
    writer_u32(w, key, &value, 1);
}

static void put_text(writer *w, const char *key, const char *text) {
    writer_text(w, key, text, strlen(text));
}

static void put_tokenizer(writer *w) {
    float scores[HIDDEN] = {0};
    char types[HIDDEN];
    tc__buf strings = {NULL, 0, 0, false};
    for (int i = 0; i < vocab; i++) {
        scores[i] = (float)-i;
        types[i] = i == 0 ? 2 : i < FIRST_BYTE ? 3 : i < SPACE ? 6 : 1;
        writer_add_string(&strings, texts[i], strlen(texts[i]));
    }
    put_text(w, "tokenizer.type", "spm-bpe");
    writer_strings(w, "tokenizer.pieces", &strings, (size_t)vocab);
    tc__meta meta = {"tokenizer.scores",
                     16,
                     TC__META_F32,
                     (size_t)vocab,
                     (const uint8_t *)scores,
                     sizeof *scores * (size_t)vocab};
    writer_meta(w, &meta);
    writer_text(w, "tokenizer.types", types, (size_t)vocab);
    put_u32(w, "tokenizer.unk_id", 0);
    put_u32(w, "tokenizer.bos_id", 1);
    put_u32(w, "tokenizer.eos_id", 2);
    put_u32(w, "tokenizer.add_bos", 1);
    put_u32(w, "tokenizer.dummy_prefix", 1);
    put_u32(w, "tokenizer.legacy", 1);
    put_text(w, "chat.template", "plain");
    put_text(w, "chat.first", "{user}");
    put_text(w, "chat.first_system", "{system}\n{user}");
    put_text(w, "chat.next", "\n{user}");
    put_text(w, "chat.reply", "{reply}");
    put_text(w, "chat.system", "");
    put_u32(w, "chat.stop_ids", EOS);
    tc__buf_free(&strings);
}

static const uint16_t half_one = 0x3c00, half_two = 0x4000;

/* One row of a square table whose entry (row, column) is value where `is` says so. */
static void fill_row(uint16_t *row, int i, bool head) {
    memset(row, 0, HIDDEN * sizeof *row);
    if (!head) {
        row[i] = half_one;
        return;
    }
    for (int from = 0; from < vocab; from++)
        for (int k = 0; k < 4 && successors[from][k]; k++)
            if (successors[from][k] == i) row[from] = half_two;
}

static bool put_zeros(writer *w, size_t rows, size_t columns, tc_error *err) {
    static const uint16_t zeros[32768];
    for (size_t i = 0; i < rows; i++)
        if (columns > TC_COUNT(zeros) || writer_put(w, zeros, columns * 2, err)) return false;
    return true;
}

static bool put_ones(writer *w, tc_error *err) {
    float ones[HIDDEN];
    for (int i = 0; i < HIDDEN; i++) ones[i] = 1;
    return writer_put(w, ones, sizeof ones, err) == TC_OK;
}

static bool put_table(writer *w, bool head, tc_error *err) {
    uint16_t row[HIDDEN];
    for (int i = 0; i < vocab; i++) {
        fill_row(row, i, head);
        if (writer_put(w, row, sizeof row, err)) return false;
    }
    return true;
}

/* `heads` of 32 numbers and `max_seq` positions: two models differ in what their KV cache needs. */
static bool write_model(const char *path, uint32_t heads, uint32_t max_seq, bool tokenizer) {
    tc_error err = {0, ""};
    writer w;
    uint32_t head_dim = 32, width = heads * head_dim;
    writer_init(&w);
    put_text(&w, "general.name", "scripts\033[31m");
    put_text(&w, "general.source", "made by a test");
    put_text(&w, "arch.family", "llama");
    put_u32(&w, "arch.hidden_size", HIDDEN);
    put_u32(&w, "arch.intermediate_size", 32);
    put_u32(&w, "arch.layers", 1);
    put_u32(&w, "arch.heads", heads);
    put_u32(&w, "arch.kv_heads", heads);
    put_u32(&w, "arch.head_dim", head_dim);
    put_u32(&w, "arch.vocab_size", (uint32_t)vocab);
    put_u32(&w, "arch.max_seq_len", max_seq);
    writer_f64(&w, "arch.norm_eps", 1e-6);
    writer_f64(&w, "arch.rope_theta", 10000);
    if (tokenizer)
        put_tokenizer(&w);
    else
        put_text(&w, "tokenizer.type", "none");
    writer_declare(&w, "embed", TC__F16, 0, (uint64_t)vocab, HIDDEN);
    writer_declare(&w, "0.attn_norm", TC__F32, 0, HIDDEN, 0);
    writer_declare(&w, "0.qkv", TC__F16, 0, 3 * width, HIDDEN);
    writer_declare(&w, "0.o", TC__F16, 0, HIDDEN, width);
    writer_declare(&w, "0.mlp_norm", TC__F32, 0, HIDDEN, 0);
    writer_declare(&w, "0.gate_up", TC__F16, 0, 64, HIDDEN);
    writer_declare(&w, "0.down", TC__F16, 0, HIDDEN, 32);
    writer_declare(&w, "norm", TC__F32, 0, HIDDEN, 0);
    writer_declare(&w, "head", TC__F16, 0, (uint64_t)vocab, HIDDEN);
    bool ok = writer_begin(&w, path, &err) == TC_OK && put_table(&w, false, &err) &&
              put_ones(&w, &err) && put_zeros(&w, 3 * width, HIDDEN, &err) &&
              put_zeros(&w, HIDDEN, width, &err) && put_ones(&w, &err) &&
              put_zeros(&w, 64, HIDDEN, &err) && put_zeros(&w, HIDDEN, 32, &err) &&
              put_ones(&w, &err) && put_table(&w, true, &err) && writer_finish(&w, &err) == TC_OK;
    if (!ok) fprintf(stderr, "%s: %s\n", path, err.message);
    writer_free(&w);
    return ok;
}

/* ---- running ./chat ---- */

#define PATIENCE 120.0 /* seconds after which a program that says nothing has failed */

typedef struct child {
    pid_t pid;
    int in, out, err; /* out == in for a terminal; -1 when closed */
} child;

typedef struct result {
    int code; /* exit code, 1000 + signal, -1 after PATIENCE */
    tc__buf out, err;
} result;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void nap(void) {
    struct timespec pause = {0, 300 * 1000 * 1000};
    nanosleep(&pause, NULL);
}

static void exec_chat(const char *const *args) {
    const char *argv[40] = {"/bin/sh", "-c", "exec $TEST_WRAPPER \"$@\"", "sh"};
    const char *chat = getenv("TINYCHAT_CHAT");
    size_t n = 4;
    argv[n++] = chat ? chat : "./chat";
    while (*args && n < TC_COUNT(argv) - 1) argv[n++] = *args++;
    signal(SIGINT, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    execv(argv[0], (char *const *)argv);
    _exit(127);
}

/* Starts ./chat on three pipes; stdout goes to `out_path` instead if that is given. */
static child spawn(const char *const *args, const char *out_path) {
    child c = {-1, -1, -1, -1};
    int in[2], out[2], err[2];
    if (pipe(in) || pipe(out) || pipe(err)) return c;
    c.pid = fork();
    if (c.pid == 0) {
        int to = out_path ? open(out_path, O_WRONLY) : out[1];
        dup2(in[0], 0), dup2(to, 1), dup2(err[1], 2);
        close(in[0]), close(in[1]), close(out[0]), close(out[1]), close(err[0]), close(err[1]);
        exec_chat(args);
    }
    close(in[0]), close(out[1]), close(err[1]);
    c.in = in[1], c.out = out[0], c.err = err[0];
    return c;
}

/* Starts ./chat on a terminal of its own. */
static child spawn_terminal(const char *const *args) {
    child c = {-1, -1, -1, -1};
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) return c;
    const char *name = ptsname(master);
    c.pid = fork();
    if (c.pid == 0) {
        setsid();
        int slave = open(name, O_RDWR); /* becomes the controlling terminal of the new session */
#ifdef TIOCSCTTY
        ioctl(slave, TIOCSCTTY, 0);
#endif
        dup2(slave, 0), dup2(slave, 1), dup2(slave, 2);
        close(slave), close(master);
        exec_chat(args);
    }
    c.in = c.out = master;
    return c;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Reads once from *fd into `to`; closes it at the end. A terminal ends with EIO. */
static void drain(int *fd, tc__buf *to) {
    char bytes[65536];
    ssize_t n = read(*fd, bytes, sizeof bytes);
    if (n > 0)
        tc__buf_add(to, bytes, (size_t)n);
    else if (n == 0 || errno != EINTR)
        close_fd(fd);
}

/* Feeds `input`, collects everything, waits. */
static result finish(child *c, const char *input, size_t len) {
    result r = {-1, {NULL, 0, 0, false}, {NULL, 0, 0, false}};
    double limit = now() + PATIENCE;
    bool terminal = c->in == c->out;
    int status = 0;
    if (!terminal && len == 0) close_fd(&c->in);
    while ((c->out >= 0 || c->err >= 0 || c->in >= 0) && now() < limit) {
        struct pollfd fds[3] = {{c->out, POLLIN, 0}, {c->err, POLLIN, 0}, {c->in, POLLOUT, 0}};
        if (terminal || len == 0) fds[2].fd = -1;
        poll(fds, 3, 1000);
        if (fds[0].revents) drain(&c->out, &r.out);
        if (fds[1].revents) drain(&c->err, &r.err);
        if (terminal) c->in = c->out;
        if (fds[2].revents) {
            ssize_t n = write(c->in, input, len < 4096 ? len : 4096);
            if (n > 0) input += n, len -= (size_t)n;
            if (n < 0 || len == 0) close_fd(&c->in), len = 0;
        }
    }
    if (now() >= limit) kill(c->pid, SIGKILL);
    if (!terminal) close_fd(&c->in);
    if (waitpid(c->pid, &status, 0) == c->pid && now() < limit)
        r.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    tc__buf_add(&r.out, "", 0);
    tc__buf_add(&r.err, "", 0);
    return r;
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static result run_input(const char *const *args, const char *input, size_t len) {
    child c = spawn(args, NULL);
    return finish(&c, input, len);
}

static result run(const char *const *args) {
    return run_input(args, "", 0);
}
static result ask(const char *const *args, const char *input) {
    return run_input(args, input, strlen(input));
}

static void done(result *r) {
    tc__buf_free(&r->out);
    tc__buf_free(&r->err);
}

static bool is(const tc__buf *text, const char *expected) {
    return text->len == strlen(expected) && memcmp(text->data, expected, text->len) == 0;
}

static bool has(const tc__buf *text, const char *part) {
    size_t len = strlen(part);
    for (size_t i = 0; i + len <= text->len; i++)
        if (memcmp(text->data + i, part, len) == 0) return true;
    return false;
}

static bool matches(const result *r, int code, const char *out, const char *err) {
    return r->code == code && (!out || is(&r->out, out)) && (!err || has(&r->err, err));
}

/* Checks code, stdout (ANY: whatever) and a part of stderr (ANY), with the facts when it fails. */
#define EXPECT(r, code_, out_, err_)                                                               \
    CHECK_MSG(matches(&(r), code_, out_, err_),                                                    \
              "exit code %d, expected %d\n  stdout: %.800s\n  stderr: %.800s", (r).code, code_,    \
              (r).out.data, (r).err.data)

#define ANY ((const char *)NULL)

/* Runs, checks, forgets. */
#define RUNS(args, code, out, err)                                                                 \
    do {                                                                                           \
        result runs_ = run(args);                                                                  \
        EXPECT(runs_, code, out, err);                                                             \
        done(&runs_);                                                                              \
    } while (0)

#define ASKS(args, input, code, out, err)                                                          \
    do {                                                                                           \
        result asks_ = ask(args, input);                                                           \
        EXPECT(asks_, code, out, err);                                                             \
        done(&asks_);                                                                              \
    } while (0)

static const char *in_folder(const char *name) {
    static char paths[8][400];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static bool write_file(const char *path, const char *bytes, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f) return false;
    bool ok = fwrite(bytes, 1, len, f) == len;
    return fclose(f) == 0 && ok;
}

static tc__buf read_file(const char *path) {
    tc__buf b = {NULL, 0, 0, false};
    char bytes[4096];
    size_t n;
    FILE *f = fopen(path, "rb");
    while (f && (n = fread(bytes, 1, sizeof bytes, f)) > 0) tc__buf_add(&b, bytes, n);
    if (f) fclose(f);
    tc__buf_add(&b, "", 0);
    return b;
}

/* ---- a person at a terminal ---- */

typedef struct terminal {
    child c;
    tc__buf seen;
    size_t at; /* what expect has matched up to */
} terminal;

static terminal open_terminal(const char *const *args) {
    terminal t = {{-1, -1, -1, -1}, {NULL, 0, 0, false}, 0};
    t.c = spawn_terminal(args);
    return t;
}

/* Waits for `text` behind what was expected before. */
static bool expect(terminal *t, const char *text) {
    double limit = now() + PATIENCE;
    size_t len = strlen(text);
    for (;;) {
        for (size_t i = t->at; i + len <= t->seen.len; i++)
            if (memcmp(t->seen.data + i, text, len) == 0) return t->at = i + len, true;
        struct pollfd fd = {t->c.out, POLLIN, 0};
        if (t->c.out < 0 || now() > limit) break;
        if (poll(&fd, 1, 1000) > 0) drain(&t->c.out, &t->seen);
        t->c.in = t->c.out;
    }
    fprintf(stderr, "  expected '%s' on the terminal, which shows:\n%.*s\n", text,
            (int)(t->seen.len - t->at < 2000 ? t->seen.len - t->at : 2000), t->seen.data + t->at);
    return false;
}

static void type(terminal *t, const char *text) {
    size_t len = strlen(text);
    while (len > 0) {
        ssize_t n = write(t->c.in, text, len);
        if (n < 0) return;
        text += n, len -= (size_t)n;
    }
}

/* The exit code; everything shown is in t->seen. */
static int leave(terminal *t) {
    result r = finish(&t->c, "", 0);
    tc__buf_add(&t->seen, r.out.data, r.out.len);
    done(&r);
    return r.code;
}

static void close_terminal(terminal *t) {
    close_fd(&t->c.out);
    tc__buf_free(&t->seen);
}

/* ---- flags and exit codes ---- */

TEST(help_is_complete_and_fits_80_columns) {
    static const char *const parts[] = {"--model",
                                        "--ctx-size",
                                        "--max-seq-len",
                                        "--threads",
                                        "--device",
                                        "--prompt",
                                        "--file",
                                        "--system",
                                        "--template",
                                        "--predict",
                                        "--reverse-prompt",
                                        "--stop",
                                        "--temp",
                                        "--top-k",
                                        "--top-p",
                                        "--min-p",
                                        "--repeat-penalty",
                                        "--repeat-last-n",
                                        "--seed",
                                        "--no-context-shift",
                                        "--single-turn",
                                        "--quiet",
                                        "--color",
                                        "--no-color",
                                        "--raw-output",
                                        "--tokenize",
                                        "--detokenize",
                                        "--special",
                                        "--ids",
                                        "--logits",
                                        "--bench",
                                        "--json",
                                        "--selftest",
                                        "--export-kernels",
                                        "--kernels",
                                        "--head",
                                        "--doctor",
                                        "--precision",
                                        "--group-size",
                                        "llama-2-7b",
                                        "--version",
                                        "130",
                                        "/help",
                                        "/reset",
                                        "/system",
                                        "/set",
                                        "/stats",
                                        "/save",
                                        "/load",
                                        "/regen",
                                        "/undo",
                                        "/quit",
                                        "[0.7]",
                                        "[40]",
                                        "[0.95]",
                                        "[1.1]",
                                        "llama-2",
                                        "vicuna"};
    result r = run(ARGS("--help"));
    EXPECT(r, 0, ANY, ANY);
    CHECK(r.err.len == 0);
    for (size_t i = 0; i < TC_COUNT(parts); i++) CHECK_MSG(has(&r.out, parts[i]), "%s", parts[i]);
    for (size_t i = 0, column = 0; i < r.out.len; i++) {
        column = r.out.data[i] == '\n' ? 0 : column + 1;
        CHECK_MSG(column <= 80, "line too long at byte %zu", i);
        if (r.out.data[i] == '\n' && i > 0) CHECK(r.out.data[i - 1] != ' ');
    }
    done(&r);
    RUNS(ARGS("--version"), 0, "tinychat " TC_VERSION "\n", ANY);
}

TEST(usage_errors_name_the_flag) {
    const char *m = model_path;
    static const struct {
        const char *args[5];
        const char *message;
    } cases[] = {
        {{NULL}, "no model file"},
        {{"M", "--bogus"}, "unknown option '--bogus'"},
        {{"M", "-x"}, "unknown option '-x'"},
        {{"M", "--temp"}, "--temp needs a value"},
        {{"M", "--top-k", "abc"}, "--top-k: expected a whole number of at least 0, got 'abc'"},
        {{"M", "--top-k=abc"}, "--top-k: expected a whole number of at least 0, got 'abc'"},
        {{"M", "--top-k", ""}, "got ''"},
        {{"M", "--top-k", "-1"}, "--top-k: expected"},
        {{"M", "--top-k", "1.5"}, "--top-k: expected"},
        {{"M", "--top-k", " 5"}, "--top-k: expected"},
        {{"M", "--top-k", "5x"}, "--top-k: expected"},
        {{"M", "--top-k", "99999999999"},
         "--top-k: expected a whole number of at most 2147483647, got '99999999999'"},
        {{"M", "--top-p", "0"}, "--top-p: expected a number above 0, got '0'"},
        {{"M", "--min-p", "1.5"}, "--min-p: expected a number from 0 to 1, got '1.5'"},
        {{"M", "--temp", "nan"}, "--temp: expected"},
        {{"M", "--temp", "0x1p2"}, "--temp: expected"},
        {{"M", "--temp", "1e99"}, "--temp: expected a number of at most 3.40282"},
        {{"M", "--temp", "1e999"}, "--temp: expected a number of at most 3.40282"},
        {{"M", "--temp", "5-5"}, "--temp: expected a number of at least 0"},
        {{"M", "--top-p", "1e99"}, "--top-p: expected a number of at most 3.40282"},
        {{"M", "--temp", "-0.1"}, "--temp: expected a number of at least 0"},
        {{"M", "--repeat-penalty", "0"}, "--repeat-penalty: expected a number above 0"},
        {{"M", "--repeat-last-n", "-2"}, "--repeat-last-n: expected a whole number of at least -1"},
        {{"M", "-n", "-2"}, "-n: expected"},
        {{"M", "-c", "-2"}, "-c: expected a whole number of at least -1, got '-2'"},
        {{"M", "--threads", "5000"}, "--threads: expected a whole number from 0 to 512"},
        {{"M", "--seed", "18446744073709551615"}, "--seed: expected -1 or a whole number below"},
        {{"M", "--seed", "-2"}, "--seed: expected"},
        {{"M", "--stop", ""}, "--stop: expected a text"},
        {{"M", "--bench=1"}, "--bench takes no value"},
        {{"M", "other.bin"}, "unexpected argument 'other.bin'"},
        {{"M", "-p", "x", "--file=y"}, "choose one of -p and -f"},
        {{"M", "--ids", "x"}, "--ids and --logits need each other"},
        {{"M", "--json"}, "--json belongs to --bench"},
        {{"M", "--kernels", "x", "--device=cpu"}, "--kernels is for a GPU"},
        {{"M", "--head", "int4"}, "--head is 'int4'; expected int8"},
        {{"M", "--head", "int8", "--device=cpu"}, "--head int8 is for a GPU"},
        {{"--selftest", "--head", "int8"}, "--head int8 is for a model"},
        {{"tiny", "--precision", "w4a16"}, "belong to the name of a shape"},
        {{"M", "--selftest", "--bench"}, "choose one of"},
        {{"--selftest", "--kernels", "x"}, "--kernels is for a model"},
        {{"--selftest", "--device", "cpu"}, "compares a GPU with the CPU"},
        {{"M", "--export-kernels", "x", "-p", "h"}, "not for the tools"},
        {{"M", "--bench", "--group-size", "16"},
         "--group-size: expected a whole number from 32 to"},
        {{"M", "--special"}, "--special belongs to --tokenize"},
        {{"M", "--tokenize", "--bench"}, "choose one of"},
        {{"M", "--tokenize", "-p", "x"}, "not for the tools"},
        {{"M", "-p", ""}, "the prompt is empty"},
        {{"M"}, "the prompt is empty"}, /* stdin is empty here */
        {{"M", "-p", "h", "--template", "nope"}, "'nope'"},
        {{"M", "-p", "h", "--device", "abacus"}, "abacus"},
        {{"M", "-p", "h", "-c", "16385"}, "16384"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        const char *args[6] = {NULL};
        for (int k = 0; k < 5 && cases[i].args[k]; k++)
            args[k] = strcmp(cases[i].args[k], "M") ? cases[i].args[k] : m;
        RUNS(args, 2, "", cases[i].message);
    }
}

TEST(exit_codes_say_what_failed) {
    RUNS(ARGS(in_folder("nothing.bin"), "-p", "h"), 3, "", "nothing.bin");
    RUNS(ARGS(folder, "-p", "h"), 3, "", folder);
    CHECK(write_file(in_folder("bad.bin"), "TINYCHAX and more", 17));
    RUNS(ARGS(in_folder("bad.bin"), "-p", "h"), 3, "", "bad.bin");
    RUNS(ARGS(model_path, "-p", "h", "--device", "cuda"), 4, "", "cuda");
    RUNS(ARGS(model_path, "-p", "h", "--device=cuda:1"), 4, "", "cuda:1");
    RUNS(ARGS("--selftest"), 4, "", "driver");
    RUNS(ARGS(model_path, "--selftest"), 4, "", "driver");
    RUNS(ARGS(model_path, "--export-kernels", in_folder("kernels")), 4, "", "cuda");
    CHECK(access(in_folder("kernels"), F_OK) != 0);
    RUNS(ARGS(model_path, "--export-kernels", in_folder("kernels"), "--device", "cpu"), 3, "",
         "nothing is compiled");
    RUNS(ARGS(model_path, "-p", "h", "--device", "cpu"), 0, "Hello there.\n", ANY);
    RUNS(ARGS(model_path, "-f", in_folder("no-prompt")), 1, "", "no-prompt");
    RUNS(ARGS(model_path, "-p", "a prompt that is far too long h", "-c", "16"), 1, "", "16");

    /* a KV cache of terabytes; and a model for token ids only */
    CHECK(write_model(in_folder("huge.bin"), 512, 1 << 24, true));
    RUNS(ARGS(in_folder("huge.bin"), "-p", "h", "-c", "0"), 5, "", "memory");
    CHECK(write_model(in_folder("ids.bin"), 1, 64, false));
    RUNS(ARGS(in_folder("ids.bin"), "-p", "h"), 3, "", "tokenizer");
    RUNS(ARGS(in_folder("ids.bin"), "--tokenize"), 3, "", "tokenizer");
}

/* ---- one reply ---- */

TEST(one_reply_goes_to_stdout_alone) {
    const char *m = model_path, *file = in_folder("prompt.txt");
    CHECK(write_file(file, "say h\n", 6));
    RUNS(ARGS(m, "-p", "say h"), 0, "Hello there.\n", "TTFT ");
    RUNS(ARGS("-m", m, "--prompt=say h"), 0, "Hello there.\n", "ms/token");
    RUNS(ARGS("--model", m, "-f", file), 0, "Hello there.\n", "tok/s");
    RUNS(ARGS("-p", "h", "--", m), 0, "Hello there.\n", "context 4096");
    ASKS(ARGS(m), "say h", 0, "Hello there.\n", "scripts\033[31m"); /* stderr is no terminal */
    ASKS(ARGS(m, "-p", "-"), "say h\n", 0, "Hello there.\n", "template plain");
    ASKS(ARGS(m, "-p", "h"), "not looked at", 0, "Hello there.\n", "KV cache");
    RUNS(ARGS(m, "-p", "."), 0, "\n", "decode 1 tokens");
    RUNS(ARGS(m, "-p", "n"), 0, "line\nend\n\n", ANY); /* the reply, then one newline */
    RUNS(ARGS(m, "-p", "u"), 0, "\342\202\254uro\n", ANY);
    RUNS(ARGS(m, "-p", "e"), 0, ESCAPES "\n", ANY); /* as it is: stdout is no terminal */

    result r = run(ARGS(m, "-q", "-p", "h"));
    EXPECT(r, 0, "Hello there.\n", ANY);
    CHECK(r.err.len == 0);
    done(&r);
}

TEST(a_prompt_keeps_all_of_its_bytes) {
    /* BOS, the dummy prefix and one id per byte */
    result r = run_input(ARGS(model_path), "a\0\nh\n", 5);
    EXPECT(r, 0, "Hello there.\n", "prefill 6 tokens");
    done(&r);
    ASKS(ARGS(model_path), "h\n\n", 0, "\n", "prefill 4 tokens"); /* only one newline is dropped */
    ASKS(ARGS(model_path), "h\r\n", 0, "\n", "prefill 4 tokens");

    size_t len = 12000; /* longer than any buffer in the way */
    char *text = malloc(len);
    REQUIRE(text != NULL);
    memset(text, 'x', len);
    text[len - 1] = 'h';
    r = run_input(ARGS(model_path, "-c", "0"), text, len);
    EXPECT(r, 0, "Hello there.\n", "prefill 12002 tokens");
    done(&r);
    free(text);
}

TEST(flags_shape_the_reply) {
    const char *m = model_path;
    RUNS(ARGS(m, "-p", "t"), 0, "one STOP two\n", ANY);
    RUNS(ARGS(m, "-p", "t", "--stop", "STOP"), 0, "one \n", ANY);
    RUNS(ARGS(m, "-p", "t", "-r", "xyz", "-r", "TOP"), 0, "one S\n", ANY);
    RUNS(ARGS(m, "-p", "l", "-n", "3"), 0, LOOP LOOP LOOP "\n", "limit of tokens");
    RUNS(ARGS(m, "-p", "l", "-c", "8"), 0, LOOP LOOP LOOP LOOP LOOP LOOP "\n",
         "context of 8 tokens is full");
    RUNS(ARGS(m, "-p", "h", "-sys", "abc"), 0, "Hello there.\n", "prefill 7 tokens");
    RUNS(ARGS(m, "-p", "h", "--system", ""), 0, "Hello there.\n", "prefill 3 tokens");
    RUNS(ARGS(m, "-p", "h", "--template", "vicuna"), 0, "\n", "template vicuna");
    RUNS(ARGS(m, "-p", "h", "-t", "1", "--max-seq-len", "77"), 0, "Hello there.\n", "context 77");
    RUNS(ARGS(m, "-p", "h", "-c", "-1"), 0, "Hello there.\n", "context 4096");
}

TEST(the_seed_decides_what_chance_says) {
    const char *m = model_path;
    result first = run(ARGS(m, "-p", "r", "-n", "60", "-s", "7"));
    EXPECT(first, 0, ANY, ANY);
    CHECK(has(&first.out, "[ba]") && has(&first.out, "[du]") && has(&first.out, "[ki]"));
    RUNS(ARGS(m, "-p", "r", "-n", "60", "--seed=7"), 0, first.out.data, ANY);
    result other = run(ARGS(m, "-p", "r", "-n", "60", "-s", "8"));
    CHECK(!is(&other.out, first.out.data));
    result cold = run(ARGS(m, "-p", "r", "-n", "9", "--temp", "0", "--repeat-penalty", "1"));
    EXPECT(cold, 0, "[ba][ba][ba][ba][ba][ba][ba][ba][ba]\n", ANY); /* equals: the lowest id */
    result one = run(ARGS(m, "-p", "r", "-n", "3", "--top-k", "1", "--repeat-penalty", "1"));
    EXPECT(one, 0, "[ba][ba][ba]\n", ANY);
    done(&first), done(&other), done(&cold), done(&one);
}

TEST(failures_of_stdout_are_noticed) {
    child c = spawn(ARGS(model_path, "-p", "l", "-n", "20000", "-c", "0"), NULL);
    close_fd(&c.out); /* a reader who left */
    result r = finish(&c, "", 0);
    EXPECT(r, 0, ANY, ANY);
    CHECK(!has(&r.err, "chat: ") && !has(&r.err, "standard output"));
    done(&r);
    if (access("/dev/full", W_OK) != 0) SKIP("there is no /dev/full");
    c = spawn(ARGS(model_path, "-p", "h"), "/dev/full");
    r = finish(&c, "", 0);
    EXPECT(r, 1, ANY, "writing to standard output: No space left");
    done(&r);
    c = spawn(ARGS("--help"), "/dev/full");
    r = finish(&c, "", 0);
    EXPECT(r, 1, ANY, "standard output");
    done(&r);
}

TEST(an_interrupt_ends_a_reply_in_a_pipe_with_130) {
    child c = spawn(ARGS(model_path, "-p", "l", "-c", "0"), NULL);
    tc__buf begun = {NULL, 0, 0, false};
    while (c.out >= 0 && begun.len < 2000) drain(&c.out, &begun); /* soon it blocks on the pipe */
    tc__buf_free(&begun);
    kill(c.pid, SIGINT);
    result r = finish(&c, "", 0);
    EXPECT(r, 130, ANY, "[stopped]");
    CHECK(r.out.len > 0 && r.out.data[r.out.len - 1] == '\n');
    CHECK(r.out.len < 16000 * strlen(LOOP));
    done(&r);
    c = spawn(ARGS(model_path), NULL); /* waits for stdin */
    nap();
    kill(c.pid, SIGINT);
    int in = c.in;
    c.in = -1; /* stays open: only the signal can end it */
    r = finish(&c, "", 0);
    close(in);
    CHECK_MSG(r.code == 130 || r.code == 1000 + SIGINT, "code %d", r.code); /* or not started yet */
    done(&r);
}

/* ---- conversations ---- */

TEST(a_conversation_can_be_piped) {
    const char *m = model_path;
    ASKS(ARGS(m, "-cnv"), "say h\n\ncall t\n", 0, "Hello there.\none STOP two\n", ANY);
    ASKS(ARGS(m, "-cnv"), "no newline h", 0, "Hello there.\n", ANY);
    ASKS(ARGS(m, "-cnv", "-p", "u"), "h\n", 0, "\342\202\254uro\nHello there.\n", ANY);
    ASKS(ARGS(m, "-cnv", "-st"), "h\nu\n", 0, "Hello there.\n", ANY);
    ASKS(ARGS(m, "-cnv"), "h\n/quit\nu\n", 0, "Hello there.\n", ANY);
    ASKS(ARGS(m, "-cnv", "-q"), "/bye\n", 0, "", ANY);
    ASKS(ARGS(m, "-cnv", "-q"), "/exit  \n", 0, "", ANY);
    /* 2 ids + 1 + 4 of the reply, then a newline and 1: only what is new is computed */
    ASKS(ARGS(m, "-cnv"), "h\nh\n", 0, "Hello there.\nHello there.\n", "prefill 3 tokens");
}

/* What the conversation holds, by way of /save. */
static tc__buf saved(const char *input, const char *const *args) {
    const char *path = in_folder("saved.txt");
    char text[2000];
    unlink(path);
    snprintf(text, sizeof text, "%s\n/save %s\n", input, path);
    result r = ask(args, text);
    CHECK_MSG(r.code == 0, "exit code %d, stderr: %s", r.code, r.err.data);
    done(&r);
    return read_file(path);
}

#define HOLDS(input, part, ...)                                                                    \
    do {                                                                                           \
        tc__buf holds_ = saved(input, ARGS(model_path, "-cnv", __VA_ARGS__));                      \
        CHECK_MSG(has(&holds_, part), "%s", holds_.data);                                          \
        tc__buf_free(&holds_);                                                                     \
    } while (0)

TEST(messages_may_have_many_lines) {
    HOLDS("one\\\ntwo", "user 7\none\ntwo\n", "-q");
    HOLDS("one\\\ntwo\\\n\\\nh", "user 10\none\ntwo\n\nh\n", "-q");
    HOLDS("\"\"\"\none\n/two\n\nh\"\"\"", "user 11\none\n/two\n\nh\n", "-q");
    HOLDS("\"\"\"one \\\n\"\"\"", "user 6\none \\\n\n", "-q");
    HOLDS("\"\"\"all of it\"\"\"", "user 9\nall of it\n", "-q");
    HOLDS("\"\"\"/quit\"\"\"", "user 5\n/quit\n", "-q");
    HOLDS("//quit", "user 5\n/quit\n", "-q");
    HOLDS("//quit\\\nh", "user 7\n/quit\nh\n", "-q");
    HOLDS("one\ntwo\\", "user 7\none\ntwo\n", "-mli");
    HOLDS("/set temp=0\none\ntwo\\", "user 7\none\ntwo\n", "-mli");
    /* lines of other systems: no "\r" before a newline, but elsewhere */
    HOLDS("one\\\r\n\rtwo\r\n", "user 8\none\n\rtwo\n", "-q");
    HOLDS("\"\"\"\r\none\r\n\r\ntwo\"\"\"\r", "user 8\none\n\ntwo\n", "-q");
    HOLDS("/system kind\r\nh\r\n\r", "system 4\nkind\n", "-q");
    ASKS(ARGS(model_path, "-cnv", "-q"), "h\r\n/quit\r\n", 0, "Hello there.\n", ANY);
}

TEST(commands_work_and_unknown_ones_are_not_sent) {
    const char *args[] = {model_path, "-cnv", "-q", NULL};
    ASKS(args, "/nonsense h\nh\n", 0, "Hello there.\n", "unknown command '/nonsense'");
    ASKS(args, "/help\n", 0, "", "/regen");
    ASKS(args, "/?\n", 0, "", "Ctrl-D");
    ASKS(args, "/system\n", 0, "", "system text:");
    ASKS(args, "h\n/regen\n", 0, "Hello there.\nHello there.\n", ANY);
    ASKS(args, "/regen\n", 0, "", "no reply yet");
    ASKS(args, "/undo\n", 0, "", "no turn yet");
    ASKS(args, "/stats\n", 0, "", "turns 0 | context 0 of 4096");
    ASKS(args, "h\nh\n/stats\n", 0, ANY, "turns 2 | context");
    ASKS(args, "h\n/undo\n/stats\n", 0, ANY, "turns 0 | context 0 of");
    ASKS(args, "h\n/clear\n/stats\n", 0, ANY, "turns 0 | context 0 of");
    ASKS(args, "/save\n", 0, "", "/save: expected");
    ASKS(args, "/load\n", 0, "", "/load: expected");
    HOLDS("/system You are\\\nkind\nh", "system 12\nYou are\nkind\n", "-q");
    HOLDS("/system abc\n/system \"\"\nh", "system 0\n\n", "-q");
    HOLDS("/system abc\n/reset\nh", "system 3\nabc\n", "-q");
}

TEST(set_changes_all_or_nothing) {
    const char *args[] = {model_path, "-cnv", "-q", "-s", "5", NULL};
    ASKS(args, "/set\n", 0, "",
         "predict=0 temp=0.7 top_k=40 top_p=0.95 min_p=0 repeat_penalty=1.1 repeat_last_n=-1 "
         "seed=5");
    ASKS(args, "/set temp=0.5 top_k=7;predict=2\nl\n", 0, LOOP LOOP "\n",
         "predict=2 temp=0.5 top_k=7 top_p=0.95");
    ASKS(args, "/set top-k=9\n", 0, "", "top_k=9");
    ASKS(args, "/set top_k=-1\n", 0, "", "top_k: expected a whole number of at least 0, got '-1'");
    ASKS(args, "/set predict=1 top_k=x\nh\n", 0, "Hello there.\n", "top_k: expected");
    ASKS(args, "/set bogus=1\n", 0, "", "unknown key 'bogus'");
    ASKS(args, "/set temp\n", 0, "", "expected temp=X");
    /* the same seed again starts the random numbers over */
    result r = ask(ARGS(model_path, "-cnv", "-q", "-n", "40"),
                   "/set seed=11\nr\n/reset\n/set seed=11\nr\n/reset\nr\n");
    char *second = strchr(r.out.data, '\n'), *third = second ? strchr(second + 1, '\n') : NULL;
    REQUIRE(r.code == 0 && second && third);
    size_t len = (size_t)(second - r.out.data);
    CHECK((size_t)(third - second) == len + 1 && memcmp(r.out.data, second + 1, len) == 0);
    CHECK(memcmp(r.out.data, third + 1, len) != 0);
    done(&r);
}

TEST(conversations_are_saved_and_loaded) {
    const char *path = in_folder("talk.txt"), *args[] = {model_path, "-cnv", NULL};
    char text[1000];
    snprintf(text, sizeof text, "say h\ncall t\n/save %s\n", path);
    ASKS(args, text, 0, "Hello there.\none STOP two\n", "[2 turns saved");
    snprintf(text, sizeof text, "/load %s\n/regen\n/save  %s \n/stats\n", path, path);
    ASKS(args, text, 0, "one STOP two\n", "turns 2");
    /* what fails ends a conversation that nobody watches */
    ASKS(args, "/load /nowhere/at/all\nh\n", 1, "", "/nowhere/at/all");
    snprintf(text, sizeof text, "h\n/load %s\nh\n", model_path);
    ASKS(args, text, 3, "Hello there.\n", model_path);

    tc__buf before = read_file(model_path); /* a model is not a conversation: it must survive */
    snprintf(text, sizeof text, "h\n/save %s\nh\n", model_path);
    ASKS(args, text, 1, "Hello there.\n", "not replaced");
    tc__buf after = read_file(model_path);
    CHECK(before.len > 1000 && before.len == after.len &&
          memcmp(before.data, after.data, before.len) == 0);
    tc__buf_free(&before);
    tc__buf_free(&after);
    CHECK(symlink("/dev/null", in_folder("null")) == 0); /* a link, lest a bug costs the device */
    snprintf(text, sizeof text, "h\n/save %s\n", in_folder("null"));
    ASKS(args, text, 1, "Hello there.\n", "not replaced");
    snprintf(text, sizeof text, "h\n/save %s\n", folder);
    ASKS(args, text, 1, "Hello there.\n", "not replaced");
    snprintf(text, sizeof text, "h\n/save %s/no/folder\nh\n", folder);
    ASKS(args, text, 1, "Hello there.\n", "no/folder");
}

TEST(a_full_context_is_said) {
    const char *m = model_path, *four = "h\nh\nh\nh\nh\nh\nh\nh\n";
    result r = ask(ARGS(m, "-cnv", "-c", "32"), four);
    EXPECT(r, 0, ANY, "the context of 32 tokens was full: dropped the oldest");
    int replies = 0;
    for (char *at = r.out.data; (at = strstr(at, "Hello there.\n")) != NULL; at++) replies++;
    CHECK_MSG(replies == 8, "%d replies", replies);
    done(&r);
    r = ask(ARGS(m, "-cnv", "-c", "32", "--no-context-shift"), four);
    EXPECT(r, 1, ANY, "32");
    done(&r);
}

/* ---- the terminal ---- */

TEST(a_person_chats_on_a_terminal) {
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    terminal t = open_terminal(ARGS(model_path));
    CHECK(expect(&t, "scripts^[[31m | ")); /* the model's name cannot colour the terminal */
    CHECK(expect(&t, "/help lists the commands"));
    CHECK(expect(&t, "> "));
    type(&t, "say h\n");
    CHECK(expect(&t, "Hello there.\r\n"));
    CHECK(expect(&t, "TTFT"));
    CHECK(expect(&t, "> "));
    type(&t, "\"\"\"\n");
    CHECK(expect(&t, ". "));
    type(&t, "two\nlines u\"\"\"\n");
    CHECK(expect(&t, "\342\202\254uro\r\n"));
    CHECK(expect(&t, "> "));
    type(&t, "/load /nowhere/at/all\n/save /\n"); /* a person may try again */
    CHECK(expect(&t, "/nowhere/at/all: cannot open"));
    CHECK(expect(&t, "not replaced"));
    CHECK(expect(&t, "> "));
    type(&t, "/stats\n");
    CHECK(expect(&t, "turns 2 |"));
    type(&t, "\004");
    int code = leave(&t);
    CHECK_MSG(code == 0, "exit code %d", code);
    CHECK(has(&t.seen, "\033[")); /* in colour */
    close_terminal(&t);
}

TEST(colour_can_be_switched_off) {
    static const char *const off[][2] = {{"NO_COLOR", "1"}, {"TERM", "dumb"}, {"", "--no-color"}};
    for (size_t i = 0; i < TC_COUNT(off); i++) {
        setenv("TERM", "xterm", 1);
        unsetenv("NO_COLOR");
        if (*off[i][0]) setenv(off[i][0], off[i][1], 1);
        terminal t = open_terminal(ARGS(model_path, *off[i][0] ? "-mli" : off[i][1]));
        CHECK(expect(&t, "> "));
        type(&t, "/bogus\n/quit\n");
        CHECK(leave(&t) == 0);
        CHECK_MSG(!has(&t.seen, "\033"), "%s=%s", off[i][0], off[i][1]);
        close_terminal(&t);
    }
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    result r = run(ARGS(model_path, "-p", "h"));
    CHECK(r.code == 0 && !has(&r.err, "\033[2m"));
    done(&r);
    r = run(ARGS(model_path, "-p", "h", "--color"));
    EXPECT(r, 0, "Hello there.\n", "\033[2m");
    done(&r);
}

TEST(control_characters_are_harmless_on_a_terminal) {
    terminal t = open_terminal(ARGS(model_path, "-q", "-p", "e"));
    CHECK(leave(&t) == 0);
    CHECK_MSG(is(&t.seen, "^[[31mred^?^M<U+009B><U+202E>\tend\r\n"), "%s", t.seen.data);
    close_terminal(&t);
    t = open_terminal(ARGS(model_path, "-q", "-p", "e", "--raw-output"));
    CHECK(leave(&t) == 0);
    CHECK_MSG(is(&t.seen, ESCAPES "\r\n"), "%s", t.seen.data);
    close_terminal(&t);
}

TEST(an_interrupt_ends_the_reply_and_keeps_the_turn) {
    terminal t = open_terminal(ARGS(model_path, "-c", "0"));
    CHECK(expect(&t, "> "));
    type(&t, "l\n");
    CHECK(expect(&t, LOOP)); /* 16384 of them: more than the terminal takes unread */
    type(&t, "\003");
    CHECK(expect(&t, "[stopped]"));
    CHECK(expect(&t, "> "));
    type(&t, "/stats\n");
    CHECK(expect(&t, "turns 1 |"));
    CHECK(expect(&t, "> "));
    type(&t, "h\n");
    CHECK(expect(&t, "Hello there.\r\n"));
    CHECK(expect(&t, "> "));
    type(&t, "\003"); /* at the prompt */
    int code = leave(&t);
    CHECK_MSG(code == 130, "exit code %d", code);
    close_terminal(&t);

    t = open_terminal(ARGS(model_path, "-c", "0"));
    CHECK(expect(&t, "> "));
    type(&t, "l\n");
    CHECK(expect(&t, LOOP));
    type(&t, "\003");
    nap();            /* two signals at once would count as one */
    type(&t, "\003"); /* leaves, whether the reply has ended by now or not */
    code = leave(&t);
    CHECK_MSG(code == 130, "exit code %d", code);
    close_terminal(&t);
}

TEST(a_line_that_the_terminal_cut_is_not_sent) {
    terminal t = open_terminal(ARGS(model_path));
    char line[6002];
    memset(line, 'x', sizeof line - 1);
    line[sizeof line - 2] = '\n';
    line[sizeof line - 1] = '\0';
    CHECK(expect(&t, "> "));
    type(&t, line);
    CHECK(expect(&t, "the terminal cut this line at 4095 bytes"));
    CHECK(expect(&t, "> "));
    type(&t, "/stats\n");
    CHECK(expect(&t, "turns 0 |"));
    type(&t, "/quit\n");
    CHECK(leave(&t) == 0);
    close_terminal(&t);
}

/* ---- tokens and logits ---- */

TEST(text_becomes_ids_and_back) {
    const char *m = model_path;
    ASKS(ARGS(m, "--tokenize"), "hi", 0, "259 107 108\n", ANY);
    ASKS(ARGS(m, "--tokenize"), "hi\n", 0, "259 107 108 13\n", ANY); /* every byte counts */
    ASKS(ARGS(m, "--tokenize"), "", 0, "\n", ANY);
    ASKS(ARGS(m, "--tokenize"), "</s>", 0, "259 63 50 118 65\n", ANY);
    ASKS(ARGS(m, "--tokenize", "--special"), "</s>", 0, "2\n", ANY);
    result r = run_input(ARGS(m, "--tokenize"), "\0\377", 2);
    EXPECT(r, 0, "259 3 242 194 192\n", ""); /* a zero byte, and U+FFFD for malformed UTF-8 */
    CHECK(r.err.len == 0);
    done(&r);

    ASKS(ARGS(m, "--detokenize"), "259 107 108\n", 0, "hi", ANY);
    ASKS(ARGS(m, "--detokenize"), "\t259\r\n 107 \n\n13", 0, "h\n", ANY);
    ASKS(ARGS(m, "--detokenize"), "", 0, "", ANY);
    ASKS(ARGS(m, "--detokenize"), "1 2x 3", 2, "",
         "standard input, item 2: expected a token id, got '2x'");
    ASKS(ARGS(m, "--detokenize"), "-1", 2, "", "got '-1'");
    ASKS(ARGS(m, "--detokenize"), "99999999999", 2, "", "item 1");
    ASKS(ARGS(m, "--detokenize"), "5000", 2, "", "5000");
    r = run_input(ARGS(m, "--detokenize"), "107\0 108", 8);
    EXPECT(r, 2, "", "item 2: expected a token id, got ''");
    done(&r);
}

/* All logits that the model must give after these ids. */
static void check_logits(const tc__buf *bytes, const int32_t *ids, size_t n) {
    CHECK_MSG(bytes->len == n * (size_t)vocab * 4, "%zu bytes", bytes->len);
    if (bytes->len != n * (size_t)vocab * 4) return;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        for (int v = 0; v < vocab; v++) {
            float logit;
            bool follows = false;
            for (int k = 0; k < 4; k++) follows |= successors[ids[i]][k] == v && v > 0;
            memcpy(&logit, bytes->data + (i * (size_t)vocab + (size_t)v) * 4, 4);
            worst = fmax(worst, fabs((double)logit - (follows ? 2 * sqrt(HIDDEN) : 0)));
        }
    }
    CHECK_MSG(worst < 0.02, "largest difference %g", worst); /* eps of the norm, half precision */
}

TEST(logits_of_every_position_are_written) {
    static const int32_t ids[] = {1, 259, 107, 117, 6, 2, 100};
    const char *in = in_folder("ids.txt"), *out = in_folder("logits.f32");
    CHECK(write_file(in, "1 259\n107\t117 6 2   100\n", 24));
    RUNS(ARGS(model_path, "--ids", in, "--logits", out), 0, "", ANY);
    tc__buf bytes = read_file(out);
    check_logits(&bytes, ids, 7);
    tc__buf_free(&bytes);
    const char *link = in_folder("link"); /* is written through, longer contents do not stay */
    CHECK(write_file(out, "x", 1) && truncate(out, 100000) == 0 && symlink(out, link) == 0);
    RUNS(ARGS(model_path, "--ids", in, "--logits", link), 0, "", ANY);
    bytes = read_file(out);
    check_logits(&bytes, ids, 7);
    tc__buf_free(&bytes);
    result r = ask(ARGS(model_path, "--ids", "-", "--logits", "-"), "1 259 107 117 6 2 100");
    EXPECT(r, 0, ANY, ANY);
    check_logits(&r.out, ids, 7);
    done(&r);
    RUNS(ARGS(in_folder("ids.bin"), "--ids", in, "--logits", out), 0, "", ANY);

    /* more ids than the default context, exactly the model's maximum, and one more */
    tc__buf many = {NULL, 0, 0, false};
    for (int i = 0; i < 5000; i++) tc__buf_printf(&many, "%d ", 107 + i % 20);
    r = run_input(ARGS(model_path, "--ids", "-", "--logits", "-"), many.data, many.len);
    EXPECT(r, 0, ANY, ANY);
    CHECK(r.out.len == 5000 * (size_t)vocab * 4);
    done(&r);
    tc__buf_free(&many);
    for (int i = 0; i < 65; i++) tc__buf_printf(&many, "1 ");
    r = run_input(ARGS(in_folder("ids.bin"), "--ids", "-", "--logits", out), many.data, many.len);
    EXPECT(r, 2, "", "64");
    done(&r);
    tc__buf_free(&many);
}

TEST(a_failed_evaluation_leaves_the_old_file) {
    const char *out = in_folder("old.f32");
    CHECK(write_file(out, "old", 3));
    ASKS(ARGS(model_path, "--ids", "-", "--logits", out), "1 2 9999", 2, "", "9999");
    ASKS(ARGS(model_path, "--ids", "-", "--logits", out), "1 two", 2, "", "item 2");
    ASKS(ARGS(model_path, "--ids", "-", "--logits", out), " \n", 2, "", "no token ids");
    ASKS(ARGS(model_path, "--ids", "-", "--logits", out, "-c", "2"), "1 2 3", 1, "", "2");
    tc__buf bytes = read_file(out);
    CHECK(is(&bytes, "old"));
    tc__buf_free(&bytes);
    ASKS(ARGS(model_path, "--ids", "-", "--logits", in_folder("no/folder")), "1", 1, "",
         "no/folder");
    RUNS(ARGS(model_path, "--ids", in_folder("none"), "--logits", out), 1, "", "none");
    if (access("/dev/full", W_OK) != 0) SKIP("there is no /dev/full");
    const char *link = in_folder("full"); /* a link, lest a bug costs the device */
    struct stat info;
    CHECK(symlink("/dev/full", link) == 0);
    ASKS(ARGS(model_path, "--ids", "-", "--logits", link), "1 2 3", 1, "", "No space left");
    CHECK(lstat(link, &info) == 0 && S_ISLNK(info.st_mode)); /* written to, not replaced */
}

/* Whether a temporary file of --logits is in the folder. */
static bool half_file(void) {
    DIR *dir = opendir(folder);
    bool found = false;
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        size_t len = strlen(entry->d_name);
        found = found || (len > 4 && strcmp(entry->d_name + len - 4, ".tmp") == 0);
    }
    if (dir) closedir(dir);
    return found;
}

/* The exit code of --logits when the signal comes as soon as there is a file, or when it has ended
 * before: then that of success. */
static int logits_interrupted(const char *out, int number, const tc__buf *ids) {
    child c = spawn(ARGS(model_path, "--ids", "-", "--logits", out), NULL);
    size_t at = 0;
    for (ssize_t n = 1; at < ids->len && n > 0; at += n > 0 ? (size_t)n : 0)
        n = write(c.in, ids->data + at, ids->len - at);
    close_fd(&c.in);
    double limit = now() + PATIENCE;
    siginfo_t ended = {0};
    while (!half_file() && now() < limit && !ended.si_pid)
        if (waitid(P_PID, (id_t)c.pid, &ended, WEXITED | WNOHANG | WNOWAIT)) break;
    kill(c.pid, number);
    result r = finish(&c, "", 0);
    int code = r.code;
    done(&r);
    return code;
}

TEST(no_signal_leaves_half_of_the_logits) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    const char *out = in_folder("old.f32");
    struct stat info;
    tc__buf ids = {NULL, 0, 0, false};
    for (int i = 0; i < 4000; i++) tc__buf_printf(&ids, "%d ", 107 + i % 20);
    for (size_t i = 0; i < TC_COUNT(numbers); i++) {
        int code = logits_interrupted(out, numbers[i], &ids);
        CHECK_MSG(code == 130 || code == 0, "signal %d: exit code %d", numbers[i], code);
        CHECK_MSG(!half_file(), "signal %d", numbers[i]);
    }
    CHECK(write_file(out, "old", 3) && chmod(out, 0600) == 0 &&
          write_file(in_folder("ids.txt"), ids.data, ids.len));
    struct rlimit before, small = {.rlim_cur = 8192};
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small.rlim_max = before.rlim_max;
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    child c = spawn(ARGS(model_path, "--ids", in_folder("ids.txt"), "--logits", out), NULL);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    result r = finish(&c, "", 0);
    EXPECT(r, 1, ANY, "old.f32: File too large");
    CHECK(!half_file());
    done(&r);
    tc__buf bytes = read_file(out);
    CHECK(is(&bytes, "old"));
    tc__buf_free(&bytes);
    RUNS(ARGS(model_path, "--ids", in_folder("ids.txt"), "--logits", out), 0, "", ANY);
    CHECK(stat(out, &info) == 0 && (info.st_mode & 0777) == 0600 && info.st_size > 3);
    tc__buf_free(&ids);
}

/* ---- benchmark ---- */

/* The number behind "key": in JSON text; -1 if there is none. */
static double json_number(const char *text, const char *key) {
    const char *at = text ? strstr(text, key) : NULL;
    return at ? strtod(at + strlen(key), NULL) : -1;
}

/* The numbers behind "key": [ in JSON text. Returns how many there are, at most n. */
static int json_numbers(const char *text, const char *key, double *out, int n) {
    const char *at = strstr(text, key);
    int count = 0;
    for (const char *end = at ? at + strlen(key) : "]"; *end != ']' && count < n; count++) {
        out[count] = strtod(end, (char **)&at);
        end = at + (*at == ',');
    }
    return count;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

TEST(the_benchmark_reports_decode_and_prefill) {
    result r = run(ARGS(model_path, "--bench", "-t", "1", "-c", "100"));
    EXPECT(r, 0, ANY, "measuring decode at context 4: 96 x 1 tokens");
    CHECK(has(&r.out, "\ndecode ") && has(&r.out, "\nprefill ") && has(&r.out, " GB/s, ") &&
          has(&r.out, " TFLOP/s\n") && has(&r.out, "\nmemory      weights ") &&
          has(&r.out, "\nstart-up    ") && has(&r.out, "  TTFT ") && !has(&r.out, "random"));
    done(&r);
    r = run(ARGS(model_path, "--bench", "--json", "-q", "-c", "8192"));
    EXPECT(r, 0, ANY, ANY);
    CHECK(r.err.len == 0 && has(&r.out, "\"model\": \"scripts\\u001b[31m\""));
    CHECK(has(&r.out, "\"random_weights\": false, \"context\": 8192"));
    static const char *const rows[] = {
        "{\"what\": \"decode\", \"context\": 4, \"tokens\": 1, \"runs\": 200",
        "{\"what\": \"decode\", \"context\": 512, \"tokens\": 1, \"runs\": 200",
        "{\"what\": \"decode\", \"context\": 2048, \"tokens\": 1, \"runs\": 200",
        "{\"what\": \"prefill\", \"context\": 0, \"tokens\": 8, \"runs\": 5",
        "{\"what\": \"prefill\", \"context\": 0, \"tokens\": 64, \"runs\": 5",
        "{\"what\": \"prefill\", \"context\": 0, \"tokens\": 512, \"runs\": 5",
        "{\"what\": \"prefill\", \"context\": 0, \"tokens\": 2048, \"runs\": 5"};
    for (size_t i = 0; i < TC_COUNT(rows); i++) CHECK_MSG(has(&r.out, rows[i]), "%s", rows[i]);
    const char *decode = strstr(r.out.data, "\"decode\""),
               *prefill = strstr(r.out.data, "\"prefill\"");
    REQUIRE(decode && prefill);
    CHECK(json_number(decode, "\"runs\": ") == 200 && json_number(decode, "\"context\": ") == 4);
    CHECK(json_number(prefill, "\"tokens\": ") == 8);
    double ms = json_number(decode, "\"ms_per_token\": ");
    double mean = json_number(decode, "\"mean_ms_per_token\": ");
    double rate = json_number(decode, "\"tokens_per_second\": ");
    double loop = json_number(r.out.data, "\"read_loop_gbs\": ");
    double reads = json_number(decode, "\"read_gbs\": ");
    double bytes = json_number(r.out.data, "\"bytes_per_token\": ");
    double kv = json_number(r.out.data, "\"kv_bytes_per_token\": ");
    double percent = json_number(decode, "\"read_percent\": ");
    double work = json_number(prefill, "\"tflops\": ");
    double speed = json_number(prefill, "\"tokens_per_second\": ");
    CHECK(ms > 0 && fabs(ms * rate - 1000) < 1 && loop > 0 && bytes > 0 && kv > 0);
    bytes += kv * (4 + 201 / 2.0); /* the context grows from 5 to 204 */
    CHECK_MSG(fabs(reads - bytes * rate * 1e-9) < 1e-3 * reads, "%g %g %g", reads, bytes, rate);
    /* 1 layer: qkv and o of one head of 32, gate and up and down of 32 */
    double layer = HIDDEN * (4 * 32 + 3 * 32.0);
    CHECK_MSG(fabs(work - 2e-12 * layer * speed) < 1e-2 * work, "%g %g", work, speed);
    CHECK(fabs(percent - 100 * reads / loop) < 1e-2 * percent);
    CHECK(json_number(prefill, "\"ttft_ms\": ") >= 8 * json_number(prefill, "\"ms_per_token\": "));
    CHECK(json_number(r.out.data, "\"startup_s\": ") > 0);
    CHECK(json_number(r.out.data, "\"kv_bytes\": ") == 8192 * kv);
    double step[201], sum = 0;
    REQUIRE(json_numbers(decode, "\"steps_ms\": [", step, 201) == 200);
    for (int i = 0; i < 200; i++) sum += step[i];
    CHECK_MSG(fabs(sum / 200 - mean) < 1e-2 * mean, "%g %g", sum, mean);
    qsort(step, 200, sizeof *step, ascending);
    CHECK_MSG(step[99] * 0.99 <= ms && ms <= step[100] * 1.01, "%g %g %g", step[99], step[100], ms);
    done(&r);
}

/* A shape is a model that no file holds, measured with random weights. */
TEST(the_benchmark_knows_shapes) {
    result r = run(ARGS("tiny", "--bench", "--device", "cpu", "-c", "100", "--group-size", "32"));
    EXPECT(r, 0, ANY, ANY);
    CHECK(has(&r.out, "tiny, W4A16 g32, ") && has(&r.out, " of weights (random)"));
    done(&r);
    r = run(ARGS("--bench", "tiny", "--precision=w16a16", "--device", "cpu", "-q", "--json"));
    EXPECT(r, 0, ANY, ANY);
    CHECK(has(&r.out, "\"model\": \"tiny\", \"precision\": \"W16A16\"") &&
          has(&r.out, "\"random_weights\": true"));
    done(&r);
    RUNS(ARGS("--bench", "llama"), 3, "", "no built-in shape");
    RUNS(ARGS("--bench", "./tiny"), 3, "", "./tiny: ");
    RUNS(ARGS("tiny", "-p", "h"), 3, "", "tiny: ");
    RUNS(ARGS("--bench", "tiny", "--group-size", "48", "--device", "cpu"), 2, "", "32, 64 or 128");
    RUNS(ARGS("--bench", "tiny", "--precision", "w8a8", "--device", "cpu"), 2, "", "'w8a8'");
    RUNS(ARGS("--bench", "tiny", "--precision", "w16a16", "--group-size", "64"), 2, "",
         "group size 64 with precision w16a16");
    RUNS(ARGS(model_path, "--bench", "--group-size", "64"), 2, "", "the name of a shape");
}

TEST(the_doctor_looks_at_the_machine) {
    static const char *const parts[] = {"tinychat ", "\ndriver ", "\nNVRTC ",
                                        "\ncache ",  "\nCPU ",    "\ndevice auto takes the CPU"};
    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* no GPU, if there is one */
    setenv("TINYCHAT_NVRTC", in_folder("no-nvrtc"), 1);
    result r = run(ARGS("--doctor"));
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("TINYCHAT_NVRTC");
    EXPECT(r, 4, ANY, "");
    for (size_t i = 0; i < TC_COUNT(parts); i++) CHECK_MSG(has(&r.out, parts[i]), "%s", parts[i]);
    done(&r);
    RUNS(ARGS("--doctor", model_path), 2, "", "--doctor looks at the machine only");
    static const char *const more[][2] = {{"--bench"},
                                          {"--json"},
                                          {"--precision", "w4a16"},
                                          {"--group-size", "64"},
                                          {"-p", "text"},
                                          {"-f", "file"},
                                          {"-cnv"},
                                          {"--special"},
                                          {"--kernels", "k"},
                                          {"--head", "int8"}};
    for (size_t i = 0; i < TC_COUNT(more); i++)
        RUNS(ARGS("--doctor", more[i][0], more[i][1]), 2, "", "--doctor looks at the machine only");
}

/* ---- main ---- */

TEST(no_file_is_left_behind) {
    static const char *const names[] = {
        "model.bin", "bad.bin",    "huge.bin", "ids.bin", "prompt.txt", "saved.txt", "talk.txt",
        "ids.txt",   "logits.f32", "old.f32",  "null",    "full",       "link"};
    for (size_t i = 0; i < TC_COUNT(names); i++) unlink(in_folder(names[i]));
    CHECK_MSG(rmdir(folder) == 0, "%s: %s", folder, strerror(errno));
}

static bool prepare(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/tinychat-cli-XXXXXX", parent ? parent : "/tmp");
    signal(SIGPIPE, SIG_IGN);
    build_scripts();
    if (!mkdtemp(folder)) return false;
    snprintf(model_path, sizeof model_path, "%s/model.bin", folder);
    return write_model(model_path, 1, MAX_SEQ, true);
}

TEST(the_model_is_written) {
    REQUIRE(prepare());
}

TEST_MAIN(
    RUN(the_model_is_written) RUN(help_is_complete_and_fits_80_columns)
        RUN(usage_errors_name_the_flag) RUN(exit_codes_say_what_failed) RUN(
            one_reply_goes_to_stdout_alone) RUN(a_prompt_keeps_all_of_its_bytes)
            RUN(flags_shape_the_reply) RUN(the_seed_decides_what_chance_says) RUN(
                failures_of_stdout_are_noticed) RUN(an_interrupt_ends_a_reply_in_a_pipe_with_130)
                RUN(a_conversation_can_be_piped) RUN(messages_may_have_many_lines)
                    RUN(commands_work_and_unknown_ones_are_not_sent) RUN(set_changes_all_or_nothing)
                        RUN(conversations_are_saved_and_loaded) RUN(a_full_context_is_said)
                            RUN(a_person_chats_on_a_terminal) RUN(colour_can_be_switched_off)
                                RUN(control_characters_are_harmless_on_a_terminal)
                                    RUN(an_interrupt_ends_the_reply_and_keeps_the_turn)
                                        RUN(a_line_that_the_terminal_cut_is_not_sent)
                                            RUN(text_becomes_ids_and_back) RUN(
                                                logits_of_every_position_are_written)
                                                RUN(no_signal_leaves_half_of_the_logits) RUN(
                                                    a_failed_evaluation_leaves_the_old_file)
                                                    RUN(the_benchmark_reports_decode_and_prefill)
                                                        RUN(the_benchmark_knows_shapes)
                                                            RUN(the_doctor_looks_at_the_machine)
                                                                RUN(no_file_is_left_behind))
