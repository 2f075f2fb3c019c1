/* chat - talks to a model on the terminal, answers one prompt, or measures. Manual: docs/chat.md.
 *
 * This program uses tinychat.h and nothing else of the engine; it is also the longest example of
 * how to use it. Only replies and results go to stdout, everything else to stderr.
 *
 * Contents: buffers - output - interrupts - flags - help - model - input - replies - commands -
 * conversation - tokens and logits - benchmark - self-test - kernels - doctor - main.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "tinychat.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What the program returns. The functions inside return one of these, or GO_ON: no reason to leave;
 * RETRY: as GO_ON, but what was read is of no use. */
enum { DONE = 0, FAILED = 1, USAGE = 2, BAD_MODEL = 3, NO_DEVICE = 4, NO_MEMORY = 5 };
enum { INTERRUPTED = 130, GO_ON = -1, RETRY = -2 };

static const struct {
    int code;
    const char *meaning;
} exit_codes[] = {
    {DONE, "success; also when the reader of stdout went away"},
    {FAILED, "failure at run time"},
    {USAGE, "a flag, a value or an input that is not what it should be"},
    {BAD_MODEL, "model file missing, damaged or not supported"},
    {NO_DEVICE, "the device asked for is not usable"},
    {NO_MEMORY, "out of memory"},
    {INTERRUPTED, "left by Ctrl-C"},
};

/* Everything that flags can say. Members of type int, float, uint64_t and char * only: the table
 * of flags stores into them by offset. */
typedef struct options {
    const char *model, *device, *prompt, *file, *system, *template_name, *ids, *logits;
    const char *kernels, *export_kernels;
    const char *precision, *head; /* NULL: not given */
    const char **stop;     /* NULL-terminated */
    size_t n_stop;
    tc_sampling sampling;
    int ctx_size, threads, predict, group_size; /* group_size 0: not given */
    int conversation, single_turn, multiline, no_context_shift;
    int quiet, color, raw_output; /* color: -1 = decide by the terminal */
    int tokenize, detokenize, special, bench, json, selftest, doctor, help, version;
    int shape; /* the model is the name of a built-in shape */
} options;

typedef struct app {
    const char *name; /* what the program was called as */
    options opt;
    tc_model *model;
    tc_model_info info;
    tc_chat *chat;
    bool in_tty, out_tty, err_tty, color;
    bool interactive; /* a person sits there: errors and Ctrl-C do not end the conversation */
    bool mid_line;    /* stdout is inside a reply */
    bool progress_on; /* a progress line is on the terminal */
    int out_error;    /* errno of the first failed write to stdout */
    size_t replies, prefill_tokens, decode_tokens, decode_steps; /* of all, for /stats */
    double prefill_seconds, decode_seconds;
    double open_seconds; /* opening the model took */
} app;

/* ---- buffers --------------------------------------------------------------------------------- */

typedef struct buffer {
    char *data; /* cap bytes; NUL-terminated whenever something was appended */
    size_t len, cap;
} buffer;

static void buffer_room(buffer *b, size_t more) {
    if (b->cap - b->len > more) return;
    size_t cap = b->cap ? b->cap : 256;
    while (cap - b->len <= more && cap <= SIZE_MAX / 2) cap *= 2;
    char *data = cap - b->len > more ? realloc(b->data, cap) : NULL;
    if (!data) {
        fprintf(stderr, "chat: out of memory for %zu bytes of text\n", b->len + more);
        exit(NO_MEMORY);
    }
    b->data = data;
    b->cap = cap;
}

static void append(buffer *b, const char *text, size_t len) {
    buffer_room(b, len);
    if (len) memcpy(b->data + b->len, text, len);
    b->len += len;
    b->data[b->len] = '\0';
}

static void vappendf(buffer *b, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    if (len > 0) {
        buffer_room(b, (size_t)len);
        vsnprintf(b->data + b->len, (size_t)len + 1, format, again);
        b->len += (size_t)len;
    }
    va_end(again);
}

static void appendf(buffer *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vappendf(b, format, args);
    va_end(args);
}

/* The first character of len >= 1 bytes; returns its bytes. A byte that begins no valid UTF-8
 * counts as one U+FFFD. */
static size_t next_char(const char *text, size_t len, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    bool valid = n == 1 || (s[0] >= 0xc2 && s[0] <= 0xf4 && n <= len);
    uint32_t c = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (size_t i = 1; valid && i < n; i++) {
        valid = (s[i] & 0xc0) == 0x80;
        c = c << 6 | (s[i] & 0x3fu);
    }
    valid = valid && c >= least[n] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    *code = valid ? c : 0xfffd;
    return valid ? n : 1;
}

/* Characters that move the cursor, change colours or reorder text on a terminal: all controls but
 * newline and tab, and the bidirectional embeddings, overrides and isolates. */
static bool is_hostile(uint32_t c) {
    return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7f && c <= 0x9f) ||
           (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* Appends text for a terminal: hostile characters as ^[ or <U+009B>. */
static void append_safe(buffer *b, const char *text, size_t len) {
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t c;
        n = next_char(text + i, len - i, &c);
        if (!is_hostile(c)) {
            append(b, c == 0xfffd ? "\xef\xbf\xbd" : text + i, c == 0xfffd ? 3 : n);
        } else if (c < 0x80) {
            appendf(b, "^%c", (int)(c ^ 0x40));
        } else {
            appendf(b, "<U+%04X>", (unsigned)c);
        }
    }
}

static void append_json(buffer *b, const char *text) {
    size_t len = strlen(text);
    append(b, "\"", 1);
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t c;
        n = next_char(text + i, len - i, &c);
        if (c == '"' || c == '\\' || c < 0x20 || c == 0xfffd) {
            appendf(b, "\\u%04x", (unsigned)c);
        } else {
            append(b, text + i, n);
        }
    }
    append(b, "\"", 1);
}

static void append_bytes(buffer *b, double bytes) {
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB"};
    size_t u = 0;
    for (; bytes >= 999.5 && u + 1 < COUNT(unit); u++) bytes /= 1000;
    appendf(b, "%.*f %s", u == 0 || bytes >= 99.5 ? 0 : bytes >= 9.95 ? 1 : 2, bytes, unit[u]);
}

/* ---- output ---------------------------------------------------------------------------------- */

/* All of `len` bytes, whatever it takes. Returns 0 or errno. */
static int write_all(int fd, const void *data, size_t len) {
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) p += n, len -= (size_t)n;
    }
    return 0;
}

/* The only way to stdout, for bytes as they are. After a failure nothing more is written. */
static void put(app *a, const char *text, size_t len) {
    if (!a->out_error) a->out_error = write_all(STDOUT_FILENO, text, len);
}

/* Text that a model or a file made up: harmless when it goes to a terminal. */
static void put_text(app *a, const char *text, size_t len) {
    buffer safe = {0};
    bool raw = !a->out_tty || a->opt.raw_output;
    if (!raw) append_safe(&safe, text, len);
    put(a, raw ? text : safe.data, raw ? len : safe.len);
    free(safe.data);
}

static void end_progress(app *a) {
    static const char blank[] = "\r                              \r";
    if (a->progress_on) (void)write_all(STDERR_FILENO, blank, sizeof blank - 1);
    a->progress_on = false;
}

/* A line on stderr, made harmless when that is a terminal. `what` is SAY for what somebody asked
 * for, NOTE for what is good to know (silenced by -q), or the exit code of an error. Returns GO_ON,
 * or that code. */
enum { SAY = -3, NOTE = -4 };
static int tell(app *a, int what, const char *format, ...) {
    buffer text = {0}, line = {0};
    const char *style = !a->color || what == SAY ? "" : what == NOTE ? "\033[2m" : "\033[31m";
    va_list args;
    if (what == NOTE && a->opt.quiet) return GO_ON;
    end_progress(a);
    if (what >= 0) appendf(&text, "%s: ", a->name);
    va_start(args, format);
    vappendf(&text, format, args);
    va_end(args);
    append(&line, style, strlen(style));
    (a->err_tty ? append_safe : append)(&line, text.data, text.len);
    appendf(&line, "%s\n", *style ? "\033[0m" : "");
    (void)write_all(STDERR_FILENO, line.data, line.len); /* nowhere left to report a failure */
    free(text.data);
    free(line.data);
    return what < 0 ? GO_ON : what;
}

static int exit_code(int error) {
    switch (error) {
    case TC_OK: return DONE;
    case TC_ERR_ARGUMENT: return USAGE;
    case TC_ERR_FORMAT:
    case TC_ERR_UNSUPPORTED: return BAD_MODEL;
    case TC_ERR_MEMORY: return NO_MEMORY;
    case TC_ERR_DEVICE: return NO_DEVICE;
    case TC_ERR_CANCELLED: return INTERRUPTED;
    default: return FAILED;
    }
}

/* Reports a failed call of the library, unless it was the person who stopped it. */
static int fail_error(app *a, const tc_error *err) {
    end_progress(a);
    if (err->code == TC_ERR_CANCELLED) return INTERRUPTED;
    return tell(a, exit_code(err->code), "%s", err->message);
}

/* What a failed write to stdout means for the program: a reader who left is no error. */
static int check_output(app *a) {
    if (!a->out_error) return GO_ON;
    if (a->out_error == EPIPE) return DONE;
    return tell(a, FAILED, "writing to standard output: %s", strerror(a->out_error));
}

/* ---- interrupts ------------------------------------------------------------------------------ */

/* What Ctrl-C needs to know. It ends what is running; the main program counts and decides. */
static volatile sig_atomic_t interrupts;
static tc_chat *volatile running_chat;
static tc_session *volatile running_session;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (++interrupts > 2) _exit(INTERRUPTED); /* the program does not come to answer the first */
    if (running_chat) tc_chat_cancel(running_chat);
    if (running_session) tc_session_cancel(running_session);
}

/* A signal that the parent process ignores (nohup, background jobs) stays ignored. */
static void catch_signal(int number, int flags) {
    struct sigaction action;
    if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_IGN) return;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = flags;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

/* flags: SA_RESTART, or 0 while input is read, so that Ctrl-C ends the reading. */
static void catch_interrupts(int flags) {
    catch_signal(SIGINT, flags);
}

/* While a half file is there, what ends the program by default is an interrupt too. */
static void catch_all_signals(void) {
    catch_signal(SIGTERM, SA_RESTART);
    catch_signal(SIGHUP, SA_RESTART);
    signal(SIGXFSZ, SIG_IGN); /* a file that grows beyond its limit (ulimit -f): a failed write */
}

/* Progress of a slow step, on a terminal only. For the library's callbacks: Ctrl-C cancels. */
static int on_progress(void *user, double fraction, const char *what) {
    app *a = user;
    if (a->err_tty && !a->opt.quiet && fraction < 1) {
        char line[64];
        int len = snprintf(line, sizeof line, "\r%-24.24s %3d %%", what, (int)(fraction * 100));
        (void)write_all(STDERR_FILENO, line, (size_t)len);
        a->progress_on = true;
    }
    return interrupts > 0;
}

/* ---- flags ----------------------------------------------------------------------------------- */

enum { HEADING, SWITCH, TEXT, LIST, WHOLE, REAL, SEED };

/* One row gives parsing, validation, --help and, with a key, /set. */
typedef struct flag {
    const char *names; /* separated by spaces, all equal; NULL for a heading */
    const char *arg;   /* what --help calls the value */
    const char *key;   /* the name for /set, or NULL */
    int kind;
    size_t offset;   /* of the member of options */
    double min, max; /* of numbers; min = FLT_MIN means "above 0". Switches store min */
    const char *help;
} flag;

#define AT(member) offsetof(options, member)
#define SECTION(title)                                                                             \
    { NULL, NULL, NULL, HEADING, 0, 0, 0, title }
#define ON(names, member, help)                                                                    \
    { names, NULL, NULL, SWITCH, AT(member), 1, 0, help }
#define OFF(names, member, help)                                                                   \
    { names, NULL, NULL, SWITCH, AT(member), 0, 0, help }
#define STRING(names, arg, member, help)                                                           \
    { names, arg, NULL, TEXT, AT(member), 0, 0, help }
#define STRINGS(names, arg, member, help)                                                          \
    { names, arg, NULL, LIST, AT(member), 0, 0, help }
#define INT(names, key, member, min, max, help)                                                    \
    { names, "N", key, WHOLE, AT(member), min, max, help }
#define FLOAT(names, key, member, min, max, help)                                                  \
    { names, "X", key, REAL, AT(member), min, max, help }

static const flag flags[] = {
    SECTION("Model"),
    STRING("-m --model", "FILE", model, "the model file, if it does not stand alone"),
    INT("-c --ctx-size --max-seq-len", NULL, ctx_size, -1, INT_MAX,
        "positions of the KV cache; 0 = the model's maximum, -1 = the smallest of that, 4096 and "
        "what fits into memory"),
    INT("-t --threads", NULL, threads, 0, 512, "CPU threads; 0 = one per processor"),
    STRING("--device", "NAME", device, "auto, cpu, cuda or cuda:N"),
    STRING("--head", "int8", head,
           "keep the matrix that gives the logits in 8 bits on a GPU: faster tokens, the more the "
           "larger the vocabulary; logits change a little"),
    STRING("--kernels", "FILE", kernels,
           "take the GPU's kernels from FILE, made by --export-kernels; needs no NVRTC"),

    SECTION("Conversation"),
    STRING("-p --prompt", "TEXT", prompt, "answer TEXT once; - reads stdin"),
    STRING("-f --file", "FILE", file,
           "answer a file once; one final newline is dropped, as from stdin"),
    STRING("-sys --system --system-prompt", "TEXT", system,
           "system text, \"\" for none [the template's own]"),
    STRING("--template", "NAME", template_name, "chat template [the model file's]; one of:"),
    ON("-cnv --conversation", conversation,
       "chat line by line, after -p and also when stdin is no terminal"),
    ON("-st --single-turn", single_turn, "leave after the first reply"),
    ON("-mli --multiline-input", multiline,
       "a message goes on until a line that ends in \\ (without: a line that ends in \\ goes on)"),

    SECTION("Reply"),
    INT("-n --predict --n-predict", "predict", predict, -1, INT_MAX,
        "tokens of one reply at most; -1 or 0 = until the context ends"),
    STRINGS("-r --reverse-prompt --stop", "TEXT", stop,
            "end the reply where TEXT appears; may be repeated"),
    ON("--no-context-shift", no_context_shift,
       "refuse a message that does not fit instead of dropping the oldest turns"),
    FLOAT("--temp", "temp", sampling.temperature, 0, FLT_MAX,
          "temperature; 0 = always the most likely token"),
    INT("--top-k", "top_k", sampling.top_k, 0, INT_MAX, "the N most likely tokens; 0 = all"),
    FLOAT("--top-p", "top_p", sampling.top_p, FLT_MIN, FLT_MAX,
          "the most likely tokens whose probabilities sum to X; 1 = all"),
    FLOAT("--min-p", "min_p", sampling.min_p, 0, 1,
          "tokens at least X times as likely as the first; 0 = all"),
    FLOAT("--repeat-penalty", "repeat_penalty", sampling.repeat_penalty, FLT_MIN, FLT_MAX,
          "divisor for tokens that occurred; 1 = off"),
    INT("--repeat-last-n", "repeat_last_n", sampling.repeat_last_n, -1, INT_MAX,
        "tokens that --repeat-penalty looks back; -1 = the whole context, 0 = off"),
    {"-s --seed", "N", "seed", SEED, AT(sampling.seed), 0, 0,
     "start of the random numbers; -1 = another one each time [-1]"},

    SECTION("Output"),
    ON("-q --quiet", quiet, "nothing on stderr but errors and what a command asks for"),
    ON("--color", color, "colour on stderr even when it is no terminal"),
    OFF("--no-color", color, "no colour, like NO_COLOR=1 or TERM=dumb"),
    ON("--raw-output", raw_output,
       "send control characters of the model to the terminal as they are"),

    SECTION("Tools, instead of a chat"),
    ON("--tokenize", tokenize,
       "text on stdin to token ids: no template, no BOS, every byte counts"),
    ON("--special", special, "with --tokenize: text such as </s> becomes the special token"),
    ON("--detokenize", detokenize, "token ids on stdin to text"),
    STRING("--ids", "FILE", ids, "evaluate the token ids in a file (- = stdin), with --logits"),
    STRING("--logits", "OUT", logits,
           "write all logits as little-endian float32 [ids, vocabulary] (- = stdout)"),
    ON("--bench", bench,
       "measure memory bandwidth, decode and prefill; of a model file, or of random weights in the "
       "shape of:"),
    STRING("--precision", "NAME", precision, "of a shape: w4a16 or w16a16 [w4a16]"),
    INT("--group-size", NULL, group_size, 32, 128, "of a shape in 4 bits: 32, 64 or 128 [128]"),
    ON("--json", json, "with --bench: print JSON"),
    ON("--selftest", selftest,
       "compare the GPU with the CPU: all kernels with small random models, or MODEL if there is "
       "one"),
    STRING("--export-kernels", "FILE", export_kernels,
           "write the kernels for MODEL on this GPU to FILE, for machines of the same kind without "
           "NVRTC"),
    ON("--doctor", doctor, "what this machine has: driver, GPUs, NVRTC, cache, CPU; no MODEL"),
    ON("-h --help", help, "print this"),
    ON("--version", version, "print the version"),
};

static bool has_name(const char *names, const char *name, size_t len) {
    for (; *names; names += strspn(names, " ")) {
        size_t n = strcspn(names, " ");
        if (n == len && memcmp(names, name, n) == 0) return true;
        names += n;
    }
    return false;
}

static const flag *find_flag(const char *name, size_t len, bool by_key) {
    for (size_t i = 0; i < COUNT(flags); i++) {
        const char *names = by_key ? flags[i].key : flags[i].names;
        if (names && has_name(names, name, len)) return &flags[i];
    }
    return NULL;
}

/* A number without any other character before or after it; else false, and *value is NAN or a
 * number that is too large. */
static bool parse_number(const char *text, bool whole, double *value) {
    char *end;
    *value = NAN;
    if (!*text || strspn(text, whole ? "+-0123456789" : "+-.0123456789eE") != strlen(text))
        return false;
    *value = strtod(text, &end);
    if (*end) *value = NAN;
    return isfinite(*value);
}

/* -1 or a whole number below TC_SEED_RANDOM. */
static bool parse_seed(const char *text, uint64_t *seed) {
    char *end;
    if (strcmp(text, "-1") == 0) return *seed = TC_SEED_RANDOM, true;
    if (!*text || strspn(text, "0123456789") != strlen(text)) return false;
    errno = 0;
    *seed = strtoull(text, &end, 10);
    return errno == 0 && *seed != TC_SEED_RANDOM;
}

/* What a flag takes; of a range whose upper end is only that of the type, the end that `value`
 * (NAN: no number) is beyond. */
static void append_expected(buffer *b, const flag *f, double value) {
    const char *what = f->kind == WHOLE ? "a whole number" : "a number";
    double far = f->kind == WHOLE ? (double)INT_MAX : (double)FLT_MAX;
    if (f->kind == SEED) {
        appendf(b, "-1 or a whole number below %llu", (unsigned long long)TC_SEED_RANDOM);
    } else if (f->max < far) {
        appendf(b, "%s from %.15g to %.15g", what, f->min, f->max);
    } else if (value > f->max) {
        appendf(b, "%s of at most %.10g", what, f->max);
    } else if (f->min == FLT_MIN) {
        appendf(b, "%s above 0", what);
    } else {
        appendf(b, "%s of at least %.15g", what, f->min);
    }
}

/* Stores the value of a flag. `label` is what the person called it. Returns GO_ON or USAGE. */
static int set_value(app *a, options *opt, const flag *f, const char *label, const char *text) {
    void *member = (char *)opt + f->offset;
    double value = NAN;
    if (f->kind == TEXT) return *(const char **)member = text, GO_ON;
    if (f->kind == LIST) {
        if (!*text) return tell(a, USAGE, "%s: expected a text that is not empty", label);
        return opt->stop[opt->n_stop++] = text, GO_ON;
    }
    if (f->kind == SEED && parse_seed(text, member)) return GO_ON;
    if (f->kind != SEED && parse_number(text, f->kind == WHOLE, &value) && value >= f->min &&
        value <= f->max) {
        if (f->kind == WHOLE) *(int *)member = (int)value;
        if (f->kind == REAL) *(float *)member = (float)value;
        return GO_ON;
    }
    buffer expected = {0};
    append_expected(&expected, f, value);
    tell(a, USAGE, "%s: expected %s, got '%s'", label, expected.data, text);
    free(expected.data);
    return USAGE;
}

/* One argument that begins with '-'; *i moves on when the value is the next one. */
static int parse_flag(app *a, int argc, char **argv, int *i) {
    char *arg = argv[*i], *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
    const flag *f = find_flag(arg, len, false);
    if (!f) return tell(a, USAGE, "unknown option '%.*s'; --help lists them", (int)len, arg);
    if (f->kind == SWITCH) {
        if (equals) return tell(a, USAGE, "%.*s takes no value", (int)len, arg);
        return *(int *)((char *)&a->opt + f->offset) = (int)f->min, GO_ON;
    }
    if (!equals && *i + 1 >= argc) return tell(a, USAGE, "%s needs a value: %s", arg, f->arg);
    const char *value = equals ? equals + 1 : argv[++*i];
    if (equals) *equals = '\0'; /* so that messages name the flag alone */
    return set_value(a, &a->opt, f, arg, value);
}

static int parse_arguments(app *a, int argc, char **argv) {
    bool no_flags = false;
    for (int i = 1; i < argc; i++) {
        if (!no_flags && strcmp(argv[i], "--") == 0) {
            no_flags = true;
        } else if (!no_flags && argv[i][0] == '-' && argv[i][1]) {
            int rc = parse_flag(a, argc, argv, &i);
            if (rc != GO_ON) return rc;
        } else if (a->opt.model) {
            return tell(a, USAGE, "unexpected argument '%s': the model is '%s' already", argv[i],
                        a->opt.model);
        } else {
            a->opt.model = argv[i];
        }
    }
    return GO_ON;
}

/* Flags that do not go together. */
static int check_options(app *a) {
    options *o = &a->opt;
    for (int i = 0; (o->bench || o->export_kernels) && o->model && tc_shape_name(i); i++)
        o->shape = o->shape || strcmp(o->model, tc_shape_name(i)) == 0;
    int tools = o->tokenize + o->detokenize + o->bench + o->selftest + (o->ids || o->logits) +
                (o->export_kernels != NULL);
    bool more = o->prompt || o->file || o->conversation || o->special || o->json || o->precision ||
                o->group_size || o->kernels || o->head;
    if (o->doctor && (o->model || tools || more))
        return tell(a, USAGE,
                    "--doctor looks at the machine only: no model, no other tool, and "
                    "none of their flags");
    if (o->doctor) return GO_ON;
    if (!o->model && !o->selftest) return tell(a, USAGE, "no model file given; --help explains");
    if (tools > 1)
        return tell(a, USAGE,
                    "choose one of --tokenize, --detokenize, --ids, --bench, --selftest, "
                    "--export-kernels");
    if (!o->ids != !o->logits) return tell(a, USAGE, "--ids and --logits need each other");
    if (o->prompt && o->file) return tell(a, USAGE, "choose one of -p and -f");
    if (tools && (o->prompt || o->file || o->conversation))
        return tell(a, USAGE, "-p, -f and -cnv are for chats, not for the tools");
    if (o->special && !o->tokenize) return tell(a, USAGE, "--special belongs to --tokenize");
    if (o->json && !o->bench) return tell(a, USAGE, "--json belongs to --bench");
    if ((o->precision || o->group_size) && !o->shape)
        return tell(a, USAGE, "--precision and --group-size belong to the name of a shape");
    if (o->head && strcmp(o->head, "int8"))
        return tell(a, USAGE, "--head is '%s'; expected int8", o->head);
    if (o->head && strcmp(o->device, "cpu") == 0)
        return tell(a, USAGE, "--head int8 is for a GPU, not for --device cpu");
    if (o->head && o->selftest && !o->model)
        return tell(a, USAGE, "--head int8 is for a model, not for the self-test without one");
    if (o->kernels && strcmp(o->device, "cpu") == 0)
        return tell(a, USAGE, "--kernels is for a GPU, not for --device cpu");
    if (o->kernels && o->selftest && !o->model)
        return tell(a, USAGE, "--kernels is for a model, not for the self-test without one");
    return GO_ON;
}

static void default_options(options *opt, const char **stop) {
    memset(opt, 0, sizeof *opt);
    opt->device = "auto";
    opt->ctx_size = tc_chat_default_params().ctx_size;
    opt->predict = tc_chat_default_params().max_tokens;
    opt->sampling = tc_default_sampling();
    opt->color = -1;
    opt->stop = stop;
}

static bool wants_color(const app *a) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (a->opt.color >= 0) return a->opt.color;
    return a->err_tty && !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0);
}

/* ---- help ------------------------------------------------------------------------------------ */

/* Appends the words of a text, broken at 80 columns, where `indent` columns are taken already. */
static void append_wrapped(buffer *b, const char *text, size_t indent) {
    for (size_t n, column = indent; *text; text += n + strspn(text + n, " ")) {
        n = strcspn(text, " ");
        bool first = column == indent, fits = column + 1 + n <= 80;
        if (!first && !fits) appendf(b, "\n%*s", (int)indent, "");
        if (!first && fits) append(b, " ", 1);
        column = first || fits ? column + !first + n : indent + n;
        append(b, text, n);
    }
    append(b, "\n", 1);
}

/* The present value of a flag, as its default in --help and in the list of /set. */
static void append_value(buffer *b, const options *opt, const flag *f) {
    const void *member = (const char *)opt + f->offset;
    bool told = f->offset == AT(group_size); /* by the help text */
    if (f->kind == WHOLE && !told) appendf(b, "%d", *(const int *)member);
    if (f->kind == REAL) appendf(b, "%g", (double)*(const float *)member);
    if (f->kind == TEXT && *(const char *const *)member)
        appendf(b, "%s", *(const char *const *)member);
    if (f->kind == SEED) appendf(b, "%llu", (unsigned long long)*(const uint64_t *)member);
}

static void append_entry(buffer *b, const char *names, const char *arg, const char *help) {
    size_t start = b->len;
    append(b, "  ", 2);
    for (const char *p = names; *p; p++) append(b, *p == ' ' ? ", " : p, *p == ' ' ? 2 : 1);
    if (arg) appendf(b, " %s", arg);
    size_t column = b->len - start;
    if (column > 28) append(b, "\n", 1), column = 0;
    appendf(b, "%*s", (int)(30 - column), "");
    append_wrapped(b, help, 30);
}

static void append_flag(buffer *b, const options *defaults, const flag *f) {
    buffer help = {0}, value = {0};
    append(&help, f->help, strlen(f->help));
    append_value(&value, defaults, f);
    if (value.len > 0 && f->kind != SEED) appendf(&help, " [%s]", value.data);
    if (f->offset == AT(template_name))
        for (int i = 0; tc_template_name(i); i++) appendf(&help, " %s", tc_template_name(i));
    if (f->offset == AT(bench))
        for (int i = 0; tc_shape_name(i); i++) appendf(&help, " %s", tc_shape_name(i));
    append_entry(b, f->names, f->arg, help.data);
    free(help.data);
    free(value.data);
}

static void append_commands(buffer *b);

static int print_help(app *a) {
    buffer b = {0};
    appendf(&b, "usage: %s [flags] MODEL            chat on the terminal\n", a->name);
    appendf(&b, "       %s [flags] MODEL -p TEXT    answer once\n", a->name);
    appendf(&b, "       ... | %s [flags] MODEL      answer stdin once\n", a->name);
    options defaults;
    default_options(&defaults, NULL);
    for (size_t i = 0; i < COUNT(flags); i++) {
        if (flags[i].kind == HEADING)
            appendf(&b, "\n%s:\n", flags[i].help);
        else
            append_flag(&b, &defaults, &flags[i]);
    }
    appendf(&b, "\nCommands in a conversation:\n");
    append_commands(&b);
    appendf(&b, "\nExit codes:\n");
    for (size_t i = 0; i < COUNT(exit_codes); i++)
        appendf(&b, "  %3d  %s\n", exit_codes[i].code, exit_codes[i].meaning);
    appendf(&b, "\nDefaults stand in brackets. Replies and results go to stdout, everything else\n"
                "to stderr. NO_COLOR=1 and TERM=dumb in the environment switch colour off.\n");
    put(a, b.data, b.len);
    free(b.data);
    return DONE;
}

static int print_version(app *a) {
    char line[64];
    int len = snprintf(line, sizeof line, "tinychat %s\n", tc_version());
    put(a, line, (size_t)len);
    return DONE;
}

/* ---- model ----------------------------------------------------------------------------------- */

static void on_log(void *user, const char *line) {
    tell(user, NOTE, "%s", line);
}

static int open_model(app *a) {
    tc_error err;
    tc_model_params params = tc_model_default_params();
    /* turning text into ids needs no GPU, and must not say that there is none */
    bool text_only = a->opt.tokenize || a->opt.detokenize;
    const char *automatic = text_only ? "cpu" : a->opt.export_kernels ? "cuda" : "auto";
    params.device = strcmp(a->opt.device, "auto") == 0 ? automatic : a->opt.device;
    params.threads = a->opt.threads;
    params.kernels = a->opt.kernels;
    params.head_bits = a->opt.head && !text_only ? 8 : 0;
    params.progress = on_progress;
    params.log = on_log;
    params.user = a;
    double start = tc_seconds();
    int rc = a->opt.shape ? tc_model_open_shape(a->opt.model, a->opt.precision, a->opt.group_size,
                                                &params, &a->model, &err)
                          : tc_model_open(a->opt.model, &params, &a->model, &err);
    end_progress(a);
    if (rc == TC_ERR_IO && a->opt.bench)
        return tell(a, BAD_MODEL, "%s; it is no built-in shape either: --help lists them",
                    err.message);
    if (rc == TC_ERR_DEVICE)
        return tell(a, NO_DEVICE, "%s (%s --doctor says more)", err.message, a->name);
    if (rc == TC_ERR_IO) return tell(a, BAD_MODEL, "%s", err.message);
    if (rc != TC_OK) return fail_error(a, &err);
    a->info = tc_model_get_info(a->model);
    a->open_seconds = tc_seconds() - start;
    return GO_ON;
}

static int open_chat(app *a) {
    tc_error err;
    tc_chat_params params = tc_chat_default_params();
    params.ctx_size = a->opt.ctx_size;
    params.template_name = a->opt.template_name;
    params.system = a->opt.system;
    params.sampling = a->opt.sampling;
    params.max_tokens = a->opt.predict;
    params.context_policy = a->opt.no_context_shift ? TC_CONTEXT_STOP : TC_CONTEXT_SHIFT;
    params.stop = a->opt.stop;
    return tc_chat_open(a->model, &params, &a->chat, &err) ? fail_error(a, &err) : GO_ON;
}

/* The line on start-up: what answers, where, and what it costs. */
static void describe(app *a) {
    tc_session_info session = tc_session_get_info(tc_chat_session(a->chat));
    buffer b = {0};
    appendf(&b, "%s | %s | %s | template %s | context %d | weights ", a->info.name,
            a->info.precision, a->info.device, tc_chat_template(a->chat), session.ctx_size);
    append_bytes(&b, (double)a->info.weight_bytes);
    appendf(&b, ", KV cache ");
    append_bytes(&b, (double)session.kv_bytes);
    appendf(&b, ", workspace ");
    append_bytes(&b, (double)session.workspace_bytes);
    tell(a, NOTE, "%s", b.data);
    if (a->interactive)
        tell(a, NOTE, "/help lists the commands; Ctrl-C ends a reply, Ctrl-D leaves.");
    free(b.data);
}

/* ---- input ----------------------------------------------------------------------------------- */

/* Linux hands over at most so many bytes of a line typed or pasted into a terminal. */
#define TTY_LINE_LIMIT 4095

/* Appends all of a file, or of stdin when the path is "-". */
static int read_all(app *a, const char *path, buffer *text) {
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *f = is_stdin ? stdin : fopen(path, "rb");
    size_t n = 1;
    catch_interrupts(0);
    while (f && n > 0) {
        buffer_room(text, 65536);
        n = fread(text->data + text->len, 1, 65536, f);
        text->len += n;
    }
    int error = !f || ferror(f) ? errno : 0;
    catch_interrupts(SA_RESTART);
    if (f && !is_stdin) fclose(f);
    if (interrupts) return INTERRUPTED;
    if (error)
        return tell(a, FAILED, "reading %s: %s", is_stdin ? "standard input" : path,
                    strerror(error));
    append(text, "", 0);
    return GO_ON;
}

/* The text to answer once. */
static int read_prompt(app *a, buffer *text) {
    const char *path = a->opt.file ? a->opt.file : "-";
    if (a->opt.prompt && strcmp(a->opt.prompt, "-") != 0) {
        append(text, a->opt.prompt, strlen(a->opt.prompt));
    } else {
        int rc = read_all(a, path, text);
        if (rc != GO_ON) return rc;
        if (text->len > 0 && text->data[text->len - 1] == '\n') text->data[--text->len] = '\0';
    }
    if (text->len == 0)
        return tell(a, USAGE, "the prompt is empty; give -p TEXT or run on a terminal to chat");
    return GO_ON;
}

/* One line of stdin without its newline (or "\r\n"), of any length and with any bytes. DONE at the
 * end. */
static int read_line(app *a, const char *prompt, buffer *line) {
    const char *styled[] = {a->color ? "\033[1;32m" : "", prompt, a->color ? "\033[0m" : ""};
    ssize_t n;
    for (size_t i = 0; a->in_tty && i < COUNT(styled); i++)
        (void)write_all(STDERR_FILENO, styled[i], strlen(styled[i]));
    catch_interrupts(0);
    do {
        clearerr(stdin);
        n = interrupts ? -1 : getline(&line->data, &line->cap, stdin);
    } while (n < 0 && ferror(stdin) && errno == EINTR && !interrupts);
    int error = errno;
    catch_interrupts(SA_RESTART);
    if (n < 0 && a->in_tty) (void)write_all(STDERR_FILENO, "\n", 1); /* leaves the prompt */
    if (interrupts) return INTERRUPTED;
    if (n < 0 && ferror(stdin))
        return tell(a, FAILED, "reading standard input: %s", strerror(error));
    if (n < 0) return DONE;
    line->len = (size_t)n;
    if (line->len > 0 && line->data[line->len - 1] == '\n') {
        line->len--;
        line->len -= line->len > 0 && line->data[line->len - 1] == '\r';
    }
    line->data[line->len] = '\0';
    if (!a->in_tty || line->len < TTY_LINE_LIMIT) return GO_ON;
    tell(a, SAY, "the terminal cut this line at %d bytes, so nothing is sent; use -f FILE",
         TTY_LINE_LIMIT);
    return RETRY;
}

/* The rest of a block after its opening quotes, up to a line that ends in three of them. */
static int read_block(app *a, buffer *line, buffer *message) {
    for (size_t skip = 3;; skip = 0) {
        const char *text = line->data + skip;
        size_t len = line->len - skip;
        bool last = len >= 3 && memcmp(text + len - 3, "\"\"\"", 3) == 0;
        append(message, text, last ? len - 3 : len);
        if (last) return GO_ON;
        if (len > 0 || skip == 0) append(message, "\n", 1);
        int rc = read_line(a, ". ", line);
        if (rc != GO_ON) return rc == DONE ? GO_ON : rc;
    }
}

/* Lines joined by a final backslash; with --multiline-input the backslash ends the message. */
static int read_joined(app *a, buffer *line, bool backslash_ends, buffer *message) {
    for (;;) {
        bool backslash = line->len > 0 && line->data[line->len - 1] == '\\';
        append(message, line->data, line->len - backslash);
        if (backslash == backslash_ends) return GO_ON;
        int rc = read_line(a, ". ", line);
        if (rc != GO_ON) return rc == DONE ? GO_ON : rc;
        append(message, "\n", 1);
    }
}

/* One message or command: a line, lines joined by backslashes, or a block in triple quotes. */
static int read_message(app *a, buffer *message, bool *command) {
    buffer line = {0};
    *command = false;
    message->len = 0;
    int rc = read_line(a, "> ", &line);
    if (rc == GO_ON && strncmp(line.data, "\"\"\"", 3) == 0) {
        rc = read_block(a, &line, message);
    } else if (rc == GO_ON) {
        bool escaped = line.data[0] == '/' && line.data[1] == '/';
        if (escaped) memmove(line.data, line.data + 1, line.len--);
        *command = line.data[0] == '/' && !escaped;
        rc = read_joined(a, &line, a->opt.multiline && !*command, message);
    }
    free(line.data);
    return rc;
}

/* ---- replies --------------------------------------------------------------------------------- */

static int on_text(void *user, const char *text, size_t len) {
    app *a = user;
    a->mid_line = true;
    put_text(a, text, len);
    return a->out_error != 0;
}

static void append_prefill(buffer *b, size_t tokens, double seconds) {
    appendf(b, "prefill %zu tokens", tokens);
    if (tokens > 0 && seconds > 0) appendf(b, ", %.1f tok/s", (double)tokens / seconds);
}

/* steps: tokens after the first, whose time is decode time. */
static void append_decode(buffer *b, size_t tokens, size_t steps, double seconds) {
    appendf(b, "decode %zu tokens", tokens);
    if (steps == 0 || seconds <= 0) return;
    appendf(b, ", %.2f ms/token (%.1f tok/s)", seconds * 1e3 / (double)steps,
            (double)steps / seconds);
}

/* What is worth knowing about how a reply went. */
static void report(app *a, const tc_reply *r) {
    size_t prefill = r->prompt_tokens - r->reused_tokens;
    size_t steps = r->reply_tokens > 0 ? r->reply_tokens - 1 : 0;
    int context = tc_session_get_info(tc_chat_session(a->chat)).ctx_size;
    if (r->dropped_turns > 0)
        tell(a, NOTE, "[the context of %d tokens was full: dropped the oldest %d turn%s]", context,
             r->dropped_turns, r->dropped_turns == 1 ? "" : "s");
    if (r->stop == TC_STOP_CONTEXT)
        tell(a, NOTE, "[the context of %d tokens is full: the reply ends here; -c makes it larger]",
             context);
    if (r->stop == TC_STOP_LENGTH) tell(a, NOTE, "[the reply ends at the limit of tokens, -n]");
    if (r->stop == TC_STOP_CANCELLED) tell(a, NOTE, "[stopped]");

    buffer b = {0};
    appendf(&b, "[TTFT %.3f s | ", r->ttft_seconds);
    append_prefill(&b, prefill, r->prefill_seconds);
    appendf(&b, " | ");
    append_decode(&b, r->reply_tokens, steps, r->decode_seconds);
    tell(a, NOTE, "%s]", b.data);
    free(b.data);

    a->replies++;
    a->prefill_tokens += prefill;
    a->prefill_seconds += r->prefill_seconds;
    a->decode_tokens += r->reply_tokens;
    a->decode_steps += steps;
    a->decode_seconds += r->decode_seconds;
}

/* Answers a message, or the last one again when text is NULL. A reply goes to stdout exactly as
 * it is, followed by one newline. Returns GO_ON when the conversation can. */
static int answer(app *a, const char *text, size_t len) {
    tc_reply reply;
    tc_error err;
    running_chat = a->chat;
    if (interrupts) return running_chat = NULL, INTERRUPTED; /* it came before the reply */
    int rc = text ? tc_chat_send(a->chat, text, len, on_text, a, &reply, &err)
                  : tc_chat_regenerate(a->chat, on_text, a, &reply, &err);
    running_chat = NULL;
    if (rc == TC_OK || a->mid_line) put(a, "\n", 1);
    a->mid_line = false;
    if (a->out_error) return check_output(a);
    if (rc == TC_OK) report(a, &reply);
    bool leave = interrupts > (a->interactive ? 1 : 0);
    interrupts = 0;
    if (leave) return INTERRUPTED;
    if (rc != TC_OK) rc = fail_error(a, &err);
    return rc == TC_OK || a->interactive ? GO_ON : rc;
}

/* ---- commands -------------------------------------------------------------------------------- */

/* Each gets what follows its name, without white space at the ends, and returns GO_ON or the exit
 * code with which to leave. */
typedef struct command {
    const char *names; /* separated by spaces */
    const char *arg;
    int (*run)(app *a, char *arg);
    const char *help;
} command;

static int command_help(app *a, char *arg) {
    buffer b = {0};
    (void)arg;
    append_commands(&b);
    tell(a, SAY,
         "%sA line that ends in \\ goes on in the next one; \"\"\" opens and closes a block of "
         "lines;\n// at the beginning of a line stands for a slash that is text. A terminal "
         "passes at\nmost %d bytes of a line: longer ones belong into a file, for -f.",
         b.data, TTY_LINE_LIMIT);
    free(b.data);
    return GO_ON;
}

static int command_reset(app *a, char *arg) {
    (void)arg;
    tc_chat_reset(a->chat);
    tell(a, NOTE, "[all turns forgotten]");
    return GO_ON;
}

static int command_system(app *a, char *arg) {
    tc_error err;
    if (!*arg) return tell(a, SAY, "system text: %s", tc_chat_system(a->chat));
    if (strcmp(arg, "\"\"") == 0) *arg = '\0';
    if (tc_chat_set_system(a->chat, arg, &err))
        fail_error(a, &err);
    else
        tell(a, NOTE, "[system text %s; the turns so far stay]", *arg ? "changed" : "removed");
    return GO_ON;
}

/* One assignment key=value; '-' in a key counts as '_'. Returns its flag, NULL if it is wrong. */
static const flag *assign(app *a, options *opt, char *text) {
    char *equals = strchr(text, '=');
    if (equals) *equals = '\0';
    for (char *p = text; *p; p++)
        if (*p == '-') *p = '_';
    const flag *f = find_flag(text, strlen(text), true);
    if (!f) return tell(a, SAY, "/set: unknown key '%s'; /set alone lists them", text), NULL;
    if (!equals) return tell(a, SAY, "/set: expected %s=%s", text, f->arg), NULL;
    return set_value(a, opt, f, text, equals + 1) == GO_ON ? f : NULL;
}

/* All of the assignments, or none. A seed starts the random numbers over even if it is the same. */
static int command_set(app *a, char *arg) {
    options changed = a->opt;
    bool seeded = false;
    tc_error err;
    buffer b = {0};
    changed.sampling = tc_chat_get_sampling(a->chat);
    for (char *item = strtok(arg, " \t\n;"); item; item = strtok(NULL, " \t\n;")) {
        const flag *f = assign(a, &changed, item);
        if (!f) return GO_ON;
        seeded = seeded || f->kind == SEED;
    }
    if (seeded)
        changed.sampling.seed = tc_session_seed(tc_chat_session(a->chat), changed.sampling.seed);
    if (tc_chat_set_sampling(a->chat, &changed.sampling, &err)) return fail_error(a, &err), GO_ON;
    tc_chat_set_max_tokens(a->chat, changed.predict);
    a->opt = changed;
    for (size_t i = 0; i < COUNT(flags); i++) {
        if (!flags[i].key) continue;
        appendf(&b, "%s%s=", b.len ? " " : "", flags[i].key);
        append_value(&b, &changed, &flags[i]);
    }
    tell(a, SAY, "%s", b.data);
    free(b.data);
    return GO_ON;
}

static int command_stats(app *a, char *arg) {
    tc_session *session = tc_chat_session(a->chat);
    int context = tc_session_get_info(session).ctx_size;
    size_t used = 0; /* by the turns that there are: after /undo the KV cache holds more */
    buffer b = {0};
    tc_error err;
    (void)arg;
    if (tc_chat_turns(a->chat) && tc_chat_render(a->chat, NULL, 0, NULL, 0, &used, &err))
        return fail_error(a, &err), GO_ON;
    append_prefill(&b, a->prefill_tokens, a->prefill_seconds);
    appendf(&b, " | ");
    append_decode(&b, a->decode_tokens, a->decode_steps, a->decode_seconds);
    tell(a, SAY, "turns %zu | context %zu of %d tokens (%.0f %%), KV cache %zu bytes a token",
         tc_chat_turns(a->chat), used, context, 100.0 * (double)used / context,
         a->info.kv_bytes_per_token);
    tell(a, SAY, "replies %zu | %s", a->replies, b.data);
    free(b.data);
    return GO_ON;
}

/* Only a new file, an empty one or an older conversation is written over: a slip of the fingers
 * must not cost a model file. */
static bool may_replace(const char *path) {
    static const char magic[] = "tinychat conversation ";
    char head[sizeof magic - 1];
    struct stat info;
    if (stat(path, &info) != 0) return errno == ENOENT;
    FILE *f = S_ISREG(info.st_mode) ? fopen(path, "rb") : NULL; /* never a device or a folder */
    if (!f) return false;
    size_t n = fread(head, 1, sizeof head, f);
    fclose(f);
    return n == 0 || (n == sizeof head && memcmp(head, magic, n) == 0);
}

/* A file that could not be saved or loaded: a person tries again, a script must learn of it. */
static int failed_file(const app *a, int code) {
    return a->interactive ? GO_ON : code;
}

static int command_save(app *a, char *arg) {
    tc_error err;
    if (!*arg) return tell(a, SAY, "/save: expected the name of a file");
    if (!may_replace(arg))
        return failed_file(
            a, tell(a, FAILED, "/save: %s holds something else than a conversation: not replaced",
                    arg));
    if (tc_chat_save(a->chat, arg, &err)) return failed_file(a, fail_error(a, &err));
    return tell(a, NOTE, "[%zu turns saved to %s]", tc_chat_turns(a->chat), arg);
}

static int command_load(app *a, char *arg) {
    tc_error err;
    if (!*arg) return tell(a, SAY, "/load: expected the name of a file");
    if (tc_chat_load(a->chat, arg, &err)) return failed_file(a, fail_error(a, &err));
    return tell(a, NOTE, "[%zu turns loaded from %s]", tc_chat_turns(a->chat), arg);
}

static int command_regen(app *a, char *arg) {
    (void)arg;
    if (tc_chat_turns(a->chat) == 0) return tell(a, SAY, "/regen: there is no reply yet");
    return answer(a, NULL, 0);
}

static int command_undo(app *a, char *arg) {
    (void)arg;
    if (!tc_chat_undo(a->chat)) return tell(a, SAY, "/undo: there is no turn yet");
    tell(a, NOTE, "[last turn removed, %zu left]", tc_chat_turns(a->chat));
    return GO_ON;
}

static int command_quit(app *a, char *arg) {
    (void)a;
    (void)arg;
    return DONE;
}

static const command commands[] = {
    {"/help /?", NULL, command_help, "this list"},
    {"/reset /clear", NULL, command_reset, "forget all turns; system text and settings stay"},
    {"/system", "[TEXT]", command_system, "show or change the system text; \"\" = none"},
    {"/set", "[KEY=N ...]", command_set,
     "show or change temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed, predict"},
    {"/stats", NULL, command_stats, "context used, speed so far"},
    {"/save", "FILE", command_save, "write the conversation to a file"},
    {"/load", "FILE", command_load, "go on with a saved conversation"},
    {"/regen", NULL, command_regen, "answer the last message again"},
    {"/undo", NULL, command_undo, "remove the last turn"},
    {"/quit /exit /bye", NULL, command_quit, "leave; so does Ctrl-D"},
};

static void append_commands(buffer *b) {
    for (size_t i = 0; i < COUNT(commands); i++)
        append_entry(b, commands[i].names, commands[i].arg, commands[i].help);
}

static int run_command(app *a, buffer *line) {
    size_t name = strcspn(line->data, " \t\n");
    if (strlen(line->data) != line->len) return tell(a, SAY, "a command cannot hold a zero byte");
    while (line->len > name && strchr(" \t\n", line->data[line->len - 1])) line->len--;
    line->data[line->len] = '\0';
    char *arg = line->data + name + strspn(line->data + name, " \t\n");
    for (size_t i = 0; i < COUNT(commands); i++)
        if (has_name(commands[i].names, line->data, name)) return commands[i].run(a, arg);
    tell(a, SAY, "unknown command '%.*s': /help lists them; // begins a message with a slash",
         (int)name, line->data);
    return GO_ON;
}

/* ---- conversation ---------------------------------------------------------------------------- */

static int converse(app *a) {
    buffer message = {0};
    bool command;
    int rc = GO_ON;
    while (rc == GO_ON) {
        size_t replies = a->replies;
        rc = read_message(a, &message, &command);
        if (rc == GO_ON && command)
            rc = run_command(a, &message);
        else if (rc == GO_ON && message.len > 0)
            rc = answer(a, message.data, message.len);
        if (rc == RETRY) rc = GO_ON;
        if (rc == GO_ON && a->opt.single_turn && a->replies > replies) rc = DONE;
    }
    free(message.data);
    return rc;
}

static int chat(app *a) {
    bool given = a->opt.prompt || a->opt.file;
    bool go_on = a->opt.conversation || (a->in_tty && !given);
    buffer prompt = {0};
    int rc = GO_ON;
    a->interactive = go_on && a->in_tty;
    if (given || !go_on) rc = read_prompt(a, &prompt);
    if (rc == GO_ON) rc = open_model(a);
    if (rc == GO_ON) rc = open_chat(a);
    if (rc == GO_ON) describe(a);
    if (rc == GO_ON && prompt.len > 0) {
        rc = answer(a, prompt.data, prompt.len);
        if (rc == GO_ON && (!go_on || a->opt.single_turn)) rc = DONE;
    }
    free(prompt.data);
    return rc == GO_ON ? converse(a) : rc;
}

/* ---- tokens and logits ----------------------------------------------------------------------- */

static int32_t *ids_room(buffer *b, size_t n) {
    buffer_room(b, n * sizeof(int32_t));
    return (int32_t *)(void *)b->data;
}

/* Token ids separated by white space, from a file or stdin. */
static int read_ids(app *a, const char *path, buffer *ids, size_t *n) {
    static const char space[] = " \t\r\n\f\v";
    buffer text = {0};
    int rc = read_all(a, path, &text);
    char *word = text.data ? text.data + strspn(text.data, space) : NULL;
    for (*n = 0; rc == GO_ON && word < text.data + text.len; ++*n) {
        size_t len = strcspn(word, space);
        long long id = len > 0 ? strtoll(word, NULL, 10) : -1;
        if (strspn(word, "0123456789") < len || id < 0 || id > INT32_MAX) {
            rc = tell(a, USAGE, "%s, item %zu: expected a token id, got '%.*s'",
                      strcmp(path, "-") ? path : "standard input", *n + 1, len < 40 ? (int)len : 40,
                      word);
        } else {
            ids_room(ids, *n + 1)[*n] = (int32_t)id;
            ids->len += sizeof(int32_t);
            word += len + strspn(word + len, space);
        }
    }
    free(text.data);
    return rc;
}

static int tokenize(app *a) {
    buffer text = {0}, ids = {0}, out = {0};
    int how = a->opt.special ? TC_TOKENIZE_SPECIAL : 0;
    size_t n = 0;
    tc_error err;
    int rc = read_all(a, "-", &text);
    if (rc == GO_ON && tc_tokenize(a->model, text.data, text.len, how, NULL, 0, &n, &err))
        rc = fail_error(a, &err);
    int32_t *id = ids_room(&ids, n);
    if (rc == GO_ON && tc_tokenize(a->model, text.data, text.len, how, id, n, &n, &err))
        rc = fail_error(a, &err);
    for (size_t i = 0; rc == GO_ON && i < n; i++) appendf(&out, i ? " %d" : "%d", (int)id[i]);
    append(&out, "\n", 1);
    if (rc == GO_ON) put(a, out.data, out.len);
    free(text.data);
    free(ids.data);
    free(out.data);
    return rc;
}

static int detokenize(app *a) {
    buffer ids = {0}, text = {0};
    size_t n = 0, len = 0;
    tc_error err;
    int rc = read_ids(a, "-", &ids, &n);
    const int32_t *id = ids_room(&ids, 0);
    if (rc == GO_ON && tc_detokenize(a->model, id, n, NULL, 0, &len, &err))
        rc = fail_error(a, &err);
    buffer_room(&text, len);
    if (rc == GO_ON && tc_detokenize(a->model, id, n, text.data, len, &len, &err))
        rc = fail_error(a, &err);
    if (rc == GO_ON) put_text(a, text.data, len);
    free(ids.data);
    free(text.data);
    return rc;
}

/* Where logits go: straight to stdout, a device or a link; else to a file beside the one asked
 * for, which takes its place when all is written. */
typedef struct sink {
    app *a;
    int fd, error;
    char *temporary; /* NULL if written in place */
    size_t positions;
} sink;

static int open_sink(app *a, sink *to) {
    const char *path = a->opt.logits;
    struct stat info;
    to->a = a;
    to->fd = STDOUT_FILENO;
    if (strcmp(path, "-") == 0) return GO_ON;
    bool there = lstat(path, &info) == 0, in_place = there && !S_ISREG(info.st_mode);
    bool replaces = there && !in_place;
    mode_t mode = replaces ? info.st_mode & 0777 : 0666; /* as private as what it replaces */
    if (!in_place) {
        catch_all_signals();
        buffer name = {0};
        appendf(&name, "%s.%ld.tmp", path, (long)getpid());
        to->temporary = name.data;
    }
    to->fd = open(in_place ? path : to->temporary,
                  O_WRONLY | O_CREAT | (in_place ? O_TRUNC : O_EXCL), mode);
    if (to->fd >= 0 && replaces) (void)!fchmod(to->fd, mode); /* what umask took away */
    if (to->fd >= 0) return GO_ON;
    int error = errno;
    free(to->temporary);
    to->temporary = NULL;
    return tell(a, FAILED, "cannot write %s: %s", path, strerror(error));
}

/* Finishes or, after a failure (rc), removes the file. */
static int close_sink(sink *to, int rc) {
    const char *path = to->a->opt.logits;
    bool file = to->fd > STDERR_FILENO;
    if (to->temporary && !to->error && rc == GO_ON && fsync(to->fd) != 0) to->error = errno;
    if (file && close(to->fd) != 0 && !to->error) to->error = errno;
    if (to->temporary && !to->error && rc == GO_ON && rename(to->temporary, path) != 0)
        to->error = errno;
    if (to->temporary && (to->error || rc != GO_ON)) unlink(to->temporary);
    free(to->temporary);
    if (!file)
        to->a->out_error = to->error; /* reported at the end, as for all of stdout */
    else if (to->error)
        return tell(to->a, FAILED, "writing %s: %s", path, strerror(to->error));
    return rc;
}

static int on_logits(void *user, size_t position, const float *logits, int vocab_size) {
    sink *to = user;
    to->error = write_all(to->fd, logits, (size_t)vocab_size * sizeof *logits);
    return to->error ||
           on_progress(to->a, (double)(position + 1) / (double)to->positions, "logits");
}

static int write_logits(app *a) {
    sink to = {0};
    buffer ids = {0};
    tc_session *session = NULL;
    tc_session_params params = tc_session_default_params();
    tc_error err;
    int rc = read_ids(a, a->opt.ids, &ids, &to.positions);
    if (rc == GO_ON && to.positions == 0) rc = tell(a, USAGE, "%s: no token ids", a->opt.ids);
    params.ctx_size = a->opt.ctx_size >= 0     ? a->opt.ctx_size
                      : to.positions < INT_MAX ? (int)to.positions
                                               : INT_MAX;
    if (rc == GO_ON && tc_session_open(a->model, &params, &session, &err)) rc = fail_error(a, &err);
    if (rc == GO_ON && (rc = open_sink(a, &to)) == GO_ON) {
        running_session = session;
        if (tc_eval_all(session, ids_room(&ids, 0), to.positions, on_logits, &to, &err) &&
            !to.error)
            rc = fail_error(a, &err);
        running_session = NULL;
        end_progress(a);
        rc = close_sink(&to, rc);
    }
    tc_session_close(session);
    free(ids.data);
    return rc;
}

/* ---- benchmark ------------------------------------------------------------------------------- */

/* Decode by TinyChat's method: a context (of 4 tokens), then 200 tokens one by one. A step is the
 * time from one token that the library hands over to the next, with default sampling. */
enum { BENCH_STEPS = 200, BENCH_PREFILLS = 5, BENCH_LONGEST = 2048, BENCH_SECONDS = 60 };

typedef struct timing {
    const char *what;
    int context, tokens;  /* evaluated before; evaluated at once, 1 = decode */
    int runs;             /* made; 0 = not measured */
    double median, total; /* seconds of a run; of all */
    double ttft;          /* median seconds of a prefill and the choice of the first token */
    double times[BENCH_STEPS],
        firsts[BENCH_PREFILLS]; /* [runs] seconds; of prefills to the token */
} timing;

typedef struct benchmark {
    tc_session *session;
    tc_session_info info;
    double startup; /* seconds until the model and the session were there */
    int ctx_size;
    int32_t ids[BENCH_LONGEST];
    char cpu[128];
    double bandwidth; /* bytes per second, the better of one run before and one after decode */
    double per_token; /* seconds, of the fastest way so far; 0 = nothing measured */
    timing timings[7];
} benchmark;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n) {
    double sorted[BENCH_STEPS];
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
}

static int measure_bandwidth(app *a, benchmark *b) {
    double rate;
    tc_error err;
    tell(a, NOTE, "measuring memory bandwidth ...");
    if (tc_read_bandwidth(a->model, 0, &rate, &err)) return fail_error(a, &err);
    if (rate > b->bandwidth) b->bandwidth = rate;
    return interrupts ? INTERRUPTED : GO_ON;
}

/* A slow machine makes fewer runs, but one. */
static bool bench_goes_on(const timing *t, int most) {
    return t->runs < most && (t->runs == 0 || t->total < BENCH_SECONDS);
}

static int time_decode(benchmark *b, timing *t, int most, tc_error *err) {
    int32_t id;
    tc_session_seed(b->session, 1);
    int rc = tc_eval(b->session, b->ids, (size_t)t->context, err);
    if (rc == TC_OK) rc = tc_sample(b->session, NULL, &id, err);
    for (double last = tc_seconds(); rc == TC_OK && bench_goes_on(t, most);) {
        rc = tc_eval(b->session, &id, 1, err);
        if (rc == TC_OK) rc = tc_sample(b->session, NULL, &id, err);
        double now = tc_seconds();
        t->times[t->runs++] = now - last;
        t->total += now - last;
        last = now;
    }
    return rc;
}

/* Waits until the GPU has nothing left to do. It begins the token after a chosen one without being
 * asked, and in a chat has long ended when the next prompt comes. */
static int come_to_rest(benchmark *b, tc_error *err) {
    tc_kv_truncate(b->session, 0);
    int rc = tc_eval(b->session, b->ids, 1, err);
    if (rc == TC_OK) tc_logits(b->session);
    tc_kv_truncate(b->session, 0);
    return rc;
}

static int time_prefill(benchmark *b, timing *t, int most, tc_error *err) {
    int rc = TC_OK;
    int32_t id;
    while (rc == TC_OK && bench_goes_on(t, most)) {
        rc = come_to_rest(b, err);
        double before = tc_seconds();
        if (rc == TC_OK) rc = tc_eval(b->session, b->ids, (size_t)t->tokens, err);
        t->times[t->runs] = tc_seconds() - before;
        if (rc == TC_OK) rc = tc_sample(b->session, NULL, &id, err);
        t->firsts[t->runs] = tc_seconds() - before;
        t->total += t->times[t->runs++];
    }
    return rc;
}

/* Leaves out what does not fit into the context, and what would take too long to do even once. */
static int measure(app *a, benchmark *b, timing *t) {
    double expected = (t->context + t->tokens) * b->per_token;
    bool decode = t->tokens == 1;
    int most = decode ? BENCH_STEPS : BENCH_PREFILLS, room = b->ctx_size - t->context;
    tc_error err;
    if (decode && most > room) most = room;
    if (t->tokens > room) return GO_ON;
    if (expected > BENCH_SECONDS) {
        tell(a, NOTE, "leaving out %s of %d at context %d: it would take about %.0f s", t->what,
             t->tokens, t->context, expected);
        return GO_ON;
    }
    tell(a, NOTE, "measuring %s at context %d: %d x %d tokens ...", t->what, t->context, most,
         t->tokens);
    tc_kv_truncate(b->session, 0);
    if ((decode ? time_decode : time_prefill)(b, t, most, &err)) return fail_error(a, &err);
    if (t->runs < most)
        tell(a, NOTE, "stopped after %d of %d: %d s are over", t->runs, most, BENCH_SECONDS);
    t->median = median(t->times, t->runs);
    if (!decode) t->ttft = median(t->firsts, t->runs);
    if (b->per_token == 0 || t->median / t->tokens < b->per_token)
        b->per_token = t->median / t->tokens;
    return GO_ON;
}

/* The processor as Linux names it, "unknown" elsewhere. */
static void name_cpu(char *name, size_t size) {
    char *line = NULL;
    size_t cap = 0;
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "unknown");
    while (f && getline(&line, &cap, f) > 0) {
        if (strncmp(line, "model name", 10) && strncmp(line, "Model", 5)) continue;
        char *value = strchr(line, ':');
        if (!value) continue;
        value += strspn(value, ": \t");
        snprintf(name, size, "%.*s", (int)strcspn(value, "\n"), value);
        if (line[0] == 'm') break;
    }
    free(line);
    if (f) fclose(f);
}

/* Bytes per second that decode reads: the weights and the KV cache, once for each token. */
static double read_rate(const app *a, const timing *t) {
    double positions = t->context + (t->runs + 1) / 2.0;
    return ((double)a->info.bytes_per_token + positions * (double)a->info.kv_bytes_per_token) /
           t->median;
}

/* Operations per second of a prefill's linear layers, as if it did nothing else. */
static double work_rate(const app *a, const timing *t) {
    return 2.0 * (double)a->info.layer_parameters * t->tokens / t->median;
}

/* What was measured: the lines above the figures. */
static void append_facts(const app *a, const benchmark *b, buffer *out) {
    appendf(out, "model       %s, %s, ", a->info.name, a->info.precision);
    append_bytes(out, (double)a->info.weight_bytes);
    appendf(out, " of weights%s, ", a->opt.shape ? " (random)" : "");
    append_bytes(out, (double)a->info.bytes_per_token);
    appendf(out, " read for each token\ndevice      %s%s%s\n", a->info.device,
            *a->info.device_details ? ", " : "", a->info.device_details);
    appendf(out, "processor   %s, %ld online\nmemory      weights ", b->cpu,
            sysconf(_SC_NPROCESSORS_ONLN));
    append_bytes(out, (double)a->info.weight_bytes);
    appendf(out, ", KV cache ");
    append_bytes(out, (double)b->info.kv_bytes);
    appendf(out, " (context %d), workspace ", b->ctx_size);
    append_bytes(out, (double)b->info.workspace_bytes);
    appendf(out, "\nstart-up    %.3f s%s\nread loop   %.2f GB/s\n\n", b->startup,
            a->opt.shape ? " (random weights included)" : "", b->bandwidth * 1e-9);
}

static void append_table(const app *a, const benchmark *b, buffer *out) {
    bool cached = false;
    append_facts(a, b, out);
    appendf(out, "%-7s %7s %6s %4s %9s %9s %10s\n", "", "context", "tokens", "runs", "ms/token",
            "mean", "tok/s");
    for (size_t i = 0; i < COUNT(b->timings); i++) {
        const timing *t = &b->timings[i];
        if (t->runs == 0) continue;
        appendf(out, "%-7s %7d %6d %4d %9.3f %9.3f %10.1f", t->what, t->context, t->tokens, t->runs,
                t->median * 1e3 / t->tokens, t->total * 1e3 / t->runs / t->tokens,
                t->tokens / t->median);
        double rate = read_rate(a, t);
        if (t->tokens > 1)
            appendf(out, "  TTFT %.1f ms, %.4g TFLOP/s\n", t->ttft * 1e3, work_rate(a, t) * 1e-12);
        else
            appendf(out, "  %.4g GB/s, %.0f %%\n", rate * 1e-9, 100 * rate / b->bandwidth);
        cached = cached || (t->tokens == 1 && rate > b->bandwidth);
    }
    appendf(out, "\nms/token is the median; GB/s counts weights and KV cache, %% is of the read "
                 "loop;\nTTFT is the time to the first token; TFLOP/s counts the linear layers\n");
    if (cached) appendf(out, "(more than the read loop: weights in a cache, or a busy machine)\n");
}

/* One timing: decode with each step, in their order. */
static void append_json_timing(const app *a, const benchmark *b, const timing *t, buffer *out) {
    appendf(out,
            "{\"what\": \"%s\", \"context\": %d, \"tokens\": %d, \"runs\": %d, "
            "\"ms_per_token\": %.6g, \"mean_ms_per_token\": %.6g, \"tokens_per_second\": %.6g",
            t->what, t->context, t->tokens, t->runs, t->median * 1e3 / t->tokens,
            t->total * 1e3 / t->runs / t->tokens, t->tokens / t->median);
    if (t->tokens > 1) {
        appendf(out, ", \"ttft_ms\": %.6g, \"tflops\": %.4g}", t->ttft * 1e3,
                work_rate(a, t) * 1e-12);
        return;
    }
    appendf(out, ", \"read_gbs\": %.6g, \"read_percent\": %.4g, \"steps_ms\": [",
            read_rate(a, t) * 1e-9, 100 * read_rate(a, t) / b->bandwidth);
    for (int i = 0; i < t->runs; i++) appendf(out, i ? ", %.4g" : "%.4g", t->times[i] * 1e3);
    appendf(out, "]}");
}

static void append_json_result(const app *a, const benchmark *b, buffer *out) {
    const char *const texts[][2] = {{"version", tc_version()},
                                    {"model", a->info.name},
                                    {"precision", a->info.precision},
                                    {"device", a->info.device},
                                    {"device_details", a->info.device_details},
                                    {"processor", b->cpu}};
    const char *separator = "";
    for (size_t i = 0; i < COUNT(texts); i++) {
        appendf(out, "%s\"%s\": ", i ? ", " : "{", texts[i][0]);
        append_json(out, texts[i][1]);
    }
    appendf(out,
            ", \"random_weights\": %s, \"context\": %d, \"weight_bytes\": %zu, "
            "\"bytes_per_token\": %zu, \"kv_bytes_per_token\": %zu, \"kv_bytes\": %zu, "
            "\"workspace_bytes\": %zu, \"startup_s\": %.4g, \"read_loop_gbs\": %.6g, "
            "\"timings\": [",
            a->opt.shape ? "true" : "false", b->ctx_size, a->info.weight_bytes,
            a->info.bytes_per_token, a->info.kv_bytes_per_token, b->info.kv_bytes,
            b->info.workspace_bytes, b->startup, b->bandwidth * 1e-9);
    for (size_t i = 0; i < COUNT(b->timings); i++) {
        if (b->timings[i].runs == 0) continue;
        appendf(out, "%s", separator);
        append_json_timing(a, b, &b->timings[i], out);
        separator = ", ";
    }
    append(out, "]}\n", 3);
}

/* Random ids: equal ones would flatter a GPU, which takes less power for equal data. */
static void choose_ids(const app *a, benchmark *b) {
    uint32_t state = 1;
    for (size_t i = 0; i < COUNT(b->ids); i++) {
        state = state * 1664525u + 1013904223u;
        b->ids[i] = (int32_t)((state >> 8) % (uint32_t)a->info.vocab_size);
    }
}

static int run_bench(app *a, benchmark *b) {
    /* prefills first, so that it is known whether long contexts can be had in time */
    static const size_t order[COUNT(b->timings)] = {0, 3, 4, 5, 6, 1, 2};
    buffer out = {0};
    int rc = b->ctx_size > b->timings[0].context
                 ? measure_bandwidth(a, b)
                 : tell(a, USAGE, "--bench needs a larger context, -c");
    for (size_t i = 0; rc == GO_ON && i < COUNT(order); i++) {
        rc = measure(a, b, &b->timings[order[i]]);
        if (rc == GO_ON && i == 0) rc = measure_bandwidth(a, b);
    }
    if (rc == GO_ON) {
        (a->opt.json ? append_json_result : append_table)(a, b, &out);
        put_text(a, out.data, out.len);
    }
    free(out.data);
    return rc;
}

static int bench(app *a) {
    benchmark b = {.timings = {{.what = "decode", .context = 4, .tokens = 1},
                               {.what = "decode", .context = 512, .tokens = 1},
                               {.what = "decode", .context = 2048, .tokens = 1},
                               {.what = "prefill", .tokens = 8},
                               {.what = "prefill", .tokens = 64},
                               {.what = "prefill", .tokens = 512},
                               {.what = "prefill", .tokens = BENCH_LONGEST}}};
    tc_session_params params = tc_session_default_params();
    tc_error err;
    params.ctx_size = a->opt.ctx_size;
    choose_ids(a, &b);
    name_cpu(b.cpu, sizeof b.cpu);
    double start = tc_seconds();
    if (tc_session_open(a->model, &params, &b.session, &err)) return fail_error(a, &err);
    b.startup = a->open_seconds + tc_seconds() - start;
    b.info = tc_session_get_info(b.session);
    b.ctx_size = b.info.ctx_size;
    running_session = b.session;
    int rc = run_bench(a, &b);
    running_session = NULL;
    tc_session_close(b.session);
    return rc;
}

/* ---- self-test ------------------------------------------------------------------------------- */

typedef struct selftest_state {
    app *a;
    int rows, wrong;
} selftest_state;

static void on_row(void *user, const tc_selftest_row *row) {
    selftest_state *state = user;
    buffer line = {0};
    end_progress(state->a);
    if (state->rows++ == 0)
        appendf(&line, "device  %s\n\n%-44s %-30s %6s %8s %8s\n", row->device, "model", "shape",
                "tokens", "prefill", "decode");
    state->wrong += !row->ok;
    if (row->error)
        appendf(&line, "%-44s %s  FAILED\n", row->name, row->error);
    else
        appendf(&line, "%-44s %-30s %6d %8.1e %8.1e  %s\n", row->name, row->shape, row->tokens,
                row->prefill_error, row->decode_error, row->ok ? "ok" : "WRONG");
    put_text(state->a, line.data, line.len);
    free(line.data);
}

static int selftest(app *a) {
    selftest_state state = {a, 0, 0};
    tc_model_params params = tc_model_default_params();
    buffer line = {0};
    tc_error err;
    double start = tc_seconds();
    params.device = a->opt.device;
    params.head_bits = a->opt.head ? 8 : 0;
    params.threads = a->opt.threads;
    params.kernels = a->opt.kernels;
    params.progress = on_progress;
    params.user = a;
    int rc = tc_selftest(a->opt.model, &params, on_row, &state, &err);
    end_progress(a);
    if (rc == TC_ERR_IO) return tell(a, BAD_MODEL, "%s", err.message);
    if (rc) return fail_error(a, &err);
    appendf(&line,
            "\n%d of %d ok in %.1f s; the errors are relative (L2) to the CPU's logits, of the "
            "worst position\n",
            state.rows - state.wrong, state.rows, tc_seconds() - start);
    put_text(a, line.data, line.len);
    free(line.data);
    return state.wrong ? FAILED : DONE;
}

/* ---- kernels --------------------------------------------------------------------------------- */

static int export_kernels(app *a) {
    tc_error err;
    if (tc_model_export_kernels(a->model, a->opt.export_kernels, &err)) return fail_error(a, &err);
    tell(a, NOTE, "[the kernels for %s on %s are in %s]", a->info.name, a->info.device,
         a->opt.export_kernels);
    return GO_ON;
}

/* ---- doctor ---------------------------------------------------------------------------------- */

static void on_line(void *user, const char *text) {
    put_text(user, text, strlen(text));
    put(user, "\n", 1);
}

static int doctor(app *a) {
    return tc_doctor(on_line, a) ? DONE : NO_DEVICE;
}

/* ---- main ------------------------------------------------------------------------------------ */

static int run(app *a, int argc, char **argv) {
    int rc = parse_arguments(a, argc, argv);
    a->color = wants_color(a);
    if (rc != GO_ON) return rc;
    if (a->opt.help) return print_help(a);
    if (a->opt.version) return print_version(a);
    rc = check_options(a);
    if (rc != GO_ON) return rc;
    if (a->opt.doctor) return doctor(a);
    if (a->opt.selftest) return selftest(a);
    int (*tool)(app *) = a->opt.tokenize         ? tokenize
                         : a->opt.detokenize     ? detokenize
                         : a->opt.ids            ? write_logits
                         : a->opt.bench          ? bench
                         : a->opt.export_kernels ? export_kernels
                                                 : NULL;
    if (!tool) return chat(a);
    rc = open_model(a);
    return rc == GO_ON ? tool(a) : rc;
}

int main(int argc, char **argv) {
    app a = {0};
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char **stop =
        calloc((size_t)argc + 1, sizeof *stop); /* no more than there are arguments */
    if (!stop) return NO_MEMORY;
    default_options(&a.opt, stop);
    a.name = slash ? slash + 1 : argc > 0 ? argv[0] : "chat";
    a.in_tty = isatty(STDIN_FILENO);
    a.out_tty = isatty(STDOUT_FILENO);
    a.err_tty = isatty(STDERR_FILENO);
    for (int fd = 0; fd <= STDERR_FILENO; fd++) /* a closed stream must not become a data file */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd) return FAILED;
    signal(SIGPIPE, SIG_IGN); /* a reader who leaves is noticed as EPIPE */
    catch_interrupts(SA_RESTART);
    int rc = run(&a, argc, argv);
    tc_chat_close(a.chat);
    tc_model_close(a.model);
    free(stop);
    end_progress(&a);
    if (rc == GO_ON || rc == DONE) rc = check_output(&a);
    return rc == GO_ON ? DONE : rc;
}
