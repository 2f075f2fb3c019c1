/* tinychat - a chat engine for 4-bit (AWQ) language models. MIT licence, see the end of README.md.
 *
 *     tc_error err;
 *     tc_model *model;
 *     tc_chat *chat;
 *     if (tc_model_open("model.bin", NULL, &model, &err)) { puts(err.message); return 1; }
 *     if (tc_chat_open(model, NULL, &chat, &err)) { puts(err.message); return 1; }
 *     tc_chat_send(chat, "Hello!", 6, print_text, NULL, NULL, &err);
 *     tc_chat_close(chat);
 *     tc_model_close(model);
 *
 * Compile tinychat.c beside your own sources and link with -lm -ldl -lpthread. kernels.cu.inc must
 * lie beside tinychat.c. Nothing else is needed: no CUDA toolkit, no other library.
 *
 * Contents: version - errors - models - tokens - sessions - sampling - chats - measuring.
 *
 * Three layers, each usable without the one above it:
 *   tc_model    the file and its weights on a device. Immutable once open.
 *   tc_session  one KV cache: evaluate token ids, read logits, sample.
 *   tc_chat     a conversation: template, system text, turns, streaming of text.
 *
 * Threads. A tc_model may be used from any number of threads at once. A tc_session or tc_chat
 * belongs to one thread at a time; only tc_session_cancel and tc_chat_cancel may be called from
 * another thread or from a signal handler. Several models and sessions live side by side; the
 * library has no global state.
 *
 * What the library never does: exit, abort, print, change signal handlers or the locale, run code
 * from a file, keep a pointer to an argument after the call returns (unless the function says so).
 *
 * Sizes are bytes and times are seconds unless a name says otherwise. Text is UTF-8 by length, not
 * by terminator; malformed UTF-8 is allowed everywhere.
 *
 * NULL where a handle, text or result is needed is TC_ERR_ARGUMENT; functions that return no code
 * do nothing then, or return 0, NULL, "" or defaults. Every "close" accepts NULL.
 */
#ifndef TINYCHAT_H
#define TINYCHAT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Put before every public function. Define it (for example as __declspec(dllexport) or static)
 * before including this header to change the linkage. */
#ifndef TC_API
#define TC_API extern
#endif

/* ---- version --------------------------------------------------------------------------------- */

#define TC_VERSION_MAJOR 0
#define TC_VERSION_MINOR 1
#define TC_VERSION_PATCH 0
#define TC_VERSION "0.1.0"

/* The version the library was compiled as, "major.minor.patch". Static storage. */
TC_API const char *tc_version(void);

/* ---- errors ---------------------------------------------------------------------------------- */

/* Every function that can fail returns one of these; 0 is success. */
enum {
    TC_OK = 0,
    TC_ERR_ARGUMENT = 1,    /* a parameter is out of range, or the call is not allowed now */
    TC_ERR_IO = 2,          /* a file cannot be opened, read or written */
    TC_ERR_FORMAT = 3,      /* a file is damaged or is not what it should be */
    TC_ERR_UNSUPPORTED = 4, /* a file is intact but asks for something this version cannot do */
    TC_ERR_MEMORY = 5,      /* out of host or device memory */
    TC_ERR_CONTEXT = 6,     /* the tokens do not fit into the session's context */
    TC_ERR_DEVICE = 7,      /* the device asked for is not there or not usable */
    TC_ERR_CANCELLED = 8,   /* tc_*_cancel was called, or a callback asked to stop */
    TC_ERR_NUMERIC = 9      /* the model produced a logit that is not a finite number */
};

/* Facts about a failure: one line of text, no newline. Every function takes NULL for it. */
typedef struct tc_error {
    int code;           /* one of TC_ERR_*; TC_OK after a call that succeeded */
    char message[1012]; /* "where: what; expected; found; what to do", NUL-terminated */
} tc_error;

/* A short name of a code: "format", "out of memory"... Static storage, never NULL. */
TC_API const char *tc_strerror(int code);

/* ---- models ---------------------------------------------------------------------------------- */

typedef struct tc_model tc_model;

typedef struct tc_model_params {
    const char *device; /* "cpu"; "cuda" or "cuda:N", an NVIDIA GPU; "auto" (default, also
                           NULL): the first GPU if it can be used, else the CPU (the log says why) */
    int threads;        /* CPU threads of each session; 0 (default) = all processors it may use */
    /* Called now and then while opening, at least first with 0 and last with 1; `what` names the
     * step. A non-zero result cancels: tc_model_open returns TC_ERR_CANCELLED. NULL = none. */
    int (*progress)(void *user, double fraction, const char *what);
    /* Remarks that are not errors, one line each without a newline. NULL = none wanted. */
    void (*log)(void *user, const char *line);
    void *user; /* handed to both callbacks */
    /* A file that tc_model_export_kernels wrote: the GPU's kernels come from there, and neither the
     * cache nor NVRTC is looked at. NULL = none. */
    const char *kernels;
    /* 8: the GPU keeps the head (the matrix that gives the logits) in 8 bits, with a scale in
     * binary16 for every row and group of 128 columns (or 64, or 32, as divides them), and reads
     * half as much of it for each token: the more the larger the vocabulary. Logits change a
     * little (README). It takes no more GPU memory, but for a model whose embedding is its head
     * too, half as much as that again. A CPU refuses it. 0 (default): as the file has it. */
    int head_bits;
} tc_model_params;

/* The defaults given above. Always start from this: later versions add fields. */
TC_API tc_model_params tc_model_default_params(void);

/* Opens a model file (docs/format.md) on a device. `params` NULL = defaults. On success *model is
 * owned by the caller (tc_model_close); on failure it is NULL. The file stays mapped until then
 * and must not be truncated meanwhile. Header, metadata, tokenizer and tensor table are verified;
 * tensor data is not (tc_model_verify does).
 * Errors: IO, FORMAT, UNSUPPORTED, MEMORY, DEVICE, CANCELLED, ARGUMENT. */
TC_API int tc_model_open(const char *path, const tc_model_params *params, tc_model **model,
                         tc_error *err);

/* Frees the model. All sessions and chats on it must be closed first. NULL is allowed. */
TC_API void tc_model_close(tc_model *model);

/* What a model is. The strings live as long as the model. */
typedef struct tc_model_info {
    const char *name;           /* from the checkpoint, for example "vicuna-7b-v1.5" */
    const char *family;         /* "llama" */
    const char *precision;      /* "W4A16 g128", "W16A16, int8 head", ... */
    const char *device;         /* "CPU (AVX-512, 8 threads)", ... */
    const char *device_details; /* of a GPU: "driver 580.65 (CUDA 13.0), up to 1980 MHz"; else "" */
    const char *template_name;  /* the chat template stored in the file */
    size_t parameters;          /* number of weights, embeddings included */
    size_t layer_parameters;    /* of these, in the matrices of the layers: a prefill does two
                                  operations with each for every token */
    size_t weight_bytes;        /* bytes of tensor data in the file, and of an 8-bit head that lies
                                  beside the embedding */
    size_t bytes_per_token;     /* weight bytes that decoding one token reads, KV cache excluded */
    size_t kv_bytes_per_token;  /* bytes of KV cache of one position on this device */
    int vocab_size;             /* number of logits */
    int layers, hidden_size, heads, kv_heads, head_dim;
    int max_seq_len;   /* positions the model was made for */
    int bos_id;        /* -1 if it has none */
    int has_tokenizer; /* 0: only token ids can be used */
} tc_model_info;

TC_API tc_model_info tc_model_get_info(const tc_model *model);

/* Writes the kernels that were compiled for this model's sizes and its GPU to a file, for machines
 * of the same kind that lack NVRTC (tc_model_params.kernels). They serve every model of these sizes
 * and every driver that can run them, with this version of the library.
 * Errors: IO, UNSUPPORTED (the model is on the CPU), DEVICE, MEMORY. */
TC_API int tc_model_export_kernels(const tc_model *model, const char *path, tc_error *err);

/* Compares every tensor's bytes with its checksum; reads the whole file once.
 * Errors: FORMAT (names the first bad tensor), CANCELLED (by `progress`, which may be NULL),
 * ARGUMENT (a built-in shape, which has no file). */
TC_API int tc_model_verify(const tc_model *model,
                           int (*progress)(void *user, double fraction, const char *what),
                           void *user, tc_error *err);

/* ---- tokens ---------------------------------------------------------------------------------- */

enum {
    TC_TOKENIZE_BOS = 1,     /* put the BOS id first, if the model's tokenizer asks for one */
    TC_TOKENIZE_SPECIAL = 2, /* text such as "</s>" becomes the special id; never for user input */
    /* The text continues earlier text: no dummy prefix (SentencePiece's space before the first
     * word) is put in front. */
    TC_TOKENIZE_CONTINUE = 4
};

/* Encodes `len` bytes of text. Sets *n to the number of ids and writes them if they are at most
 * `cap`; when *n > cap nothing was written: call again with room for *n. ids may be NULL if cap is
 * 0. Errors: UNSUPPORTED (model without a tokenizer), ARGUMENT (unknown flags, more than 700 MB of
 * text), MEMORY. */
TC_API int tc_tokenize(const tc_model *model, const char *text, size_t len, int flags, int32_t *ids,
                       size_t cap, size_t *n, tc_error *err);

/* Decodes n ids as one text. Same convention for `cap` and *len; no terminator is written. Bytes
 * that form no valid UTF-8 come out as U+FFFD (docs/format.md: how many). Special tokens have no
 * text.
 * Errors: ARGUMENT (an id is outside the vocabulary), UNSUPPORTED, MEMORY. */
TC_API int tc_detokenize(const tc_model *model, const int32_t *ids, size_t n, char *text,
                         size_t cap, size_t *len, tc_error *err);

/* 1 if this id ends a reply according to the model file, else 0. */
TC_API int tc_is_stop_id(const tc_model *model, int32_t id);

/* ---- sampling -------------------------------------------------------------------------------- */

#define TC_SEED_RANDOM UINT64_MAX

/* How the next token is chosen from the logits, in binary64. The steps, in this order (TinyChat's):
 *   1. temperature: logits are divided by it. Below 1e-5: step 2, then the largest logit wins
 *      (the lowest id among equals) and the steps after it do not apply.
 *   2. repeat_penalty p, when not 1: for every distinct id among the last repeat_last_n tokens of
 *      the context, a positive logit is divided by p and a negative one multiplied.
 *   3. softmax over the whole vocabulary; ids sorted by probability, the lower id first on ties.
 *   4. top_p: the shortest prefix whose probabilities sum to at least top_p, at least one.
 *   5. top_k: at most the first top_k.
 *   6. min_p: those with at least min_p times the probability of the first.
 *   7. one draw from what remains, with the generator below.
 * Each step filters what the one before has left, without normalising anew; the draw walks in the
 * order of step 3. The random number of the i-th draw after seeding is output i of SplitMix64
 * started at the seed: a pure function of (seed, i). Greedy choices use none up. */
typedef struct tc_sampling {
    float temperature;    /* 0.7; 0 = greedy; must be finite and >= 0 */
    float top_p;          /* 0.95; >= 1 = off; must be > 0 */
    int top_k;            /* 40; 0 = off; must be >= 0 */
    float min_p;          /* 0 = off; 0..1 */
    float repeat_penalty; /* 1.10; 1 = off; must be finite and > 0 */
    int repeat_last_n;    /* -1 = the whole context; 0 = off */
    uint64_t seed;        /* TC_SEED_RANDOM = from the operating system, see tc_session_seed */
} tc_sampling;

/* The defaults given above. */
TC_API tc_sampling tc_default_sampling(void);

/* ---- sessions -------------------------------------------------------------------------------- */

typedef struct tc_session tc_session;

typedef struct tc_session_params {
    /* Positions of the KV cache, allocated at once. 0: the model's maximum. -1 (default): the
     * smallest of the model's maximum, 4096 and what fits into seven eighths of the free memory,
     * but an error if that memory holds less than 256 positions and than the model's maximum. */
    int ctx_size;
} tc_session_params;

TC_API tc_session_params tc_session_default_params(void);

/* Makes an empty KV cache and workspace for `model`, which must outlive it, with a seed from the
 * operating system. `params` NULL = defaults.
 * Errors: MEMORY (names the sizes and what would fit), ARGUMENT (ctx_size above the model's
 * maximum). */
TC_API int tc_session_open(tc_model *model, const tc_session_params *params, tc_session **session,
                           tc_error *err);
TC_API void tc_session_close(tc_session *session);

typedef struct tc_session_info {
    int ctx_size;           /* positions there are */
    size_t kv_bytes;        /* bytes of the KV cache */
    size_t workspace_bytes; /* everything else the session allocated */
} tc_session_info;

TC_API tc_session_info tc_session_get_info(const tc_session *session);

/* Appends n >= 1 tokens to the context (batched prefill when n > 1) and computes the logits of the
 * last one. The result does not depend on how a sequence is cut into calls beyond rounding; it is
 * bit-equal for the same cut, and on the CPU for any cut. After an error or a cancellation the KV
 * cache has its old length; once computing had begun there are no logits.
 * Errors: CONTEXT (names the counts), ARGUMENT (an id outside the vocabulary), CANCELLED. */
TC_API int tc_eval(tc_session *session, const int32_t *ids, size_t n, tc_error *err);

/* As tc_eval, but computes every position's logits and hands them over in order:
 * fn(user, position in the context, logits [vocab_size], vocab_size). The pointer is valid during
 * the call. A non-zero result cancels. */
TC_API int tc_eval_all(tc_session *session, const int32_t *ids, size_t n,
                       int (*fn)(void *user, size_t position, const float *logits, int vocab_size),
                       void *user, tc_error *err);

/* The logits [vocab_size] after the last tc_eval; NULL if there are none (before the first, after
 * a truncation or a failed evaluation). Owned by the session, valid until its next call. */
TC_API const float *tc_logits(tc_session *session);

/* Starts the random numbers of tc_sample over. TC_SEED_RANDOM takes a seed from the operating
 * system. Returns the seed in use. */
TC_API uint64_t tc_session_seed(tc_session *session, uint64_t seed);

/* Chooses a token from the current logits; does not evaluate it. `sampling` NULL = defaults; its
 * seed is ignored (tc_session_seed).
 * Errors: ARGUMENT (no logits, or a parameter out of range), NUMERIC. */
TC_API int tc_sample(tc_session *session, const tc_sampling *sampling, int32_t *id, tc_error *err);

/* The number of tokens in the KV cache, and their ids (owned by the session, valid until its next
 * tc_eval or truncation). */
TC_API size_t tc_kv_length(const tc_session *session);
TC_API const int32_t *tc_kv_ids(const tc_session *session);

/* Forgets all tokens from position `length` on. Lengths above the current one change nothing. */
TC_API void tc_kv_truncate(tc_session *session, size_t length);

/* Makes the running (or the next) tc_eval return TC_ERR_CANCELLED soon. Safe from any thread and
 * from a signal handler. The request is used up by the call that it stops. */
TC_API void tc_session_cancel(tc_session *session);

/* ---- chats ----------------------------------------------------------------------------------- */

typedef struct tc_chat tc_chat;

enum { TC_CONTEXT_SHIFT = 0, TC_CONTEXT_STOP = 1 };

typedef struct tc_chat_params {
    int ctx_size;              /* as in tc_session_params */
    const char *template_name; /* NULL = the model file's; else one of tc_template_name() or the
                                  name of the model file's. One that ends replies with a special
                                  token which the tokenizer lacks needs a stop string */
    const char *system;        /* NULL = the template's own; "" = none. Copied. */
    tc_sampling sampling;      /* defaults of tc_default_sampling */
    int max_tokens;            /* tokens of one reply at most; 0 or less = until the context ends */
    /* What happens when the next turn does not fit.
     * SHIFT (default): when the prompt and room for a reply - a quarter of the context, or
     * max_tokens if that is less - are more than the context, the oldest turns are dropped from the
     * conversation, never the system text: so many that another quarter is free for the turns to
     * come, which then find their KV cache again; or, if that cannot be, that the room for the
     * reply is free; or all but the new turn.
     * STOP: nothing is dropped.
     * A prompt longer than the context is TC_ERR_CONTEXT in both cases, nothing is ever cut; and a
     * reply that meets the end of the context ends there (TC_STOP_CONTEXT). */
    int context_policy;
    const char *const *stop; /* further stop strings, NULL-terminated array; may be NULL. Copied. */
} tc_chat_params;

TC_API tc_chat_params tc_chat_default_params(void);

/* The names of the built-in templates: index 0, 1, ... until NULL. */
TC_API const char *tc_template_name(int index);

/* Starts an empty conversation with a session of its own on `model`, which must outlive it.
 * `params` NULL = defaults. Errors: those of tc_session_open; ARGUMENT (unknown template, or one
 * for another tokenizer; sampling parameter out of range); UNSUPPORTED (no tokenizer). */
TC_API int tc_chat_open(tc_model *model, const tc_chat_params *params, tc_chat **chat,
                        tc_error *err);
TC_API void tc_chat_close(tc_chat *chat);

/* Receives the reply piece by piece: whole UTF-8 characters only, never a part of a stop string;
 * len >= 1, not NUL-terminated. A non-zero result ends the reply (TC_STOP_CANCELLED); it is not
 * called again then. It must not call functions that change this chat, but tc_chat_cancel. */
typedef int (*tc_text_fn)(void *user, const char *text, size_t len);

enum {
    TC_STOP_ID = 0,       /* the model ended its reply */
    TC_STOP_STRING = 1,   /* a stop string appeared (it is not part of the reply) */
    TC_STOP_LENGTH = 2,   /* max_tokens reached */
    TC_STOP_CONTEXT = 3,  /* the context is full */
    TC_STOP_CANCELLED = 4 /* tc_chat_cancel, or the callback */
};

typedef struct tc_reply {
    int stop;               /* one of TC_STOP_* */
    const char *text;       /* the whole reply, NUL-terminated; owned by the chat until its next
                               call that changes the conversation */
    size_t len;             /* its length in bytes */
    size_t prompt_tokens;   /* tokens of the context before the reply */
    size_t reused_tokens;   /* of these, already in the KV cache */
    size_t reply_tokens;    /* tokens generated, the stop id included */
    int dropped_turns;      /* oldest turns dropped to make room */
    double prefill_seconds; /* evaluating the new prompt tokens */
    double ttft_seconds;    /* from the call to the first token */
    double decode_seconds;  /* from the first token to the last */
} tc_reply;

/* Adds a user turn and generates the reply, streamed to `on_text` (may be NULL). `reply` may be
 * NULL; it is all zero after an error.
 *
 * An ended reply, also a cancelled one (which may be empty), is kept in the conversation; after an
 * error the conversation is as before the call. Only tokens that the KV cache does not hold are
 * evaluated, whatever was done to the conversation in between. The tokens of a reply are kept as
 * they were generated, never tokenized again from the text; only after a stop string, of which
 * nothing is kept, text before it that shares a token with it is tokenized anew.
 * Errors: CONTEXT (names both counts), NUMERIC, MEMORY, ARGUMENT (a prompt without a token). */
TC_API int tc_chat_send(tc_chat *chat, const char *text, size_t len, tc_text_fn on_text, void *user,
                        tc_reply *reply, tc_error *err);

/* Drops the last reply and generates another one for the same user text (same rules: after an error
 * the old reply is still there; the random numbers go on, so that sampling gives a new text).
 * ARGUMENT if there is no turn yet. */
TC_API int tc_chat_regenerate(tc_chat *chat, tc_text_fn on_text, void *user, tc_reply *reply,
                              tc_error *err);

/* Appends a finished turn without generating: history from elsewhere. Errors: MEMORY. */
TC_API int tc_chat_add_turn(tc_chat *chat, const char *user_text, size_t user_len,
                            const char *reply_text, size_t reply_len, tc_error *err);

/* Removes the last turn. Returns 1 if there was one. */
TC_API int tc_chat_undo(tc_chat *chat);

/* Forgets all turns; system text, template and sampling stay. */
TC_API void tc_chat_reset(tc_chat *chat);

/* Changes the system text (NULL and "" as in tc_chat_params); the turns stay. Errors: MEMORY. */
TC_API int tc_chat_set_system(tc_chat *chat, const char *system, tc_error *err);

/* Reads or replaces the sampling parameters from the next reply on. The seed read is the one in
 * use, never TC_SEED_RANDOM; setting another one restarts the random numbers, setting the same one
 * does not. Errors of the setter: ARGUMENT (a value out of range; nothing changes). */
TC_API tc_sampling tc_chat_get_sampling(const tc_chat *chat);
TC_API int tc_chat_set_sampling(tc_chat *chat, const tc_sampling *sampling, tc_error *err);

/* The most tokens of one reply (as in tc_chat_params). */
TC_API void tc_chat_set_max_tokens(tc_chat *chat, int max_tokens);

/* The number of turns, and the texts of turn `index` (0 = oldest; NUL-terminated, owned by the
 * chat until the conversation changes; NULL outside the range). `len` may be NULL. */
TC_API size_t tc_chat_turns(const tc_chat *chat);
TC_API const char *tc_chat_user_text(const tc_chat *chat, size_t index, size_t *len);
TC_API const char *tc_chat_reply_text(const tc_chat *chat, size_t index, size_t *len);
/* The system text in use; "" if none. Owned by the chat until changed. */
TC_API const char *tc_chat_system(const tc_chat *chat);
/* The template in use. Lives as long as the chat. */
TC_API const char *tc_chat_template(const tc_chat *chat);

/* The token ids of the conversation as the next prompt would hold them if nothing had to be
 * dropped, for inspection: with `user_text` (may be NULL) as a further, unanswered turn.
 * Convention of tc_tokenize for cap and *n. */
TC_API int tc_chat_render(const tc_chat *chat, const char *user_text, size_t len, int32_t *ids,
                          size_t cap, size_t *n, tc_error *err);

/* Writes the conversation to a file (a text format, docs/format.md; written to a temporary file
 * and renamed; an older file's permissions stay, and so does a link to one) and reads it back,
 * replacing the turns and the system text. Template, sampling and limits are not saved. Generated
 * ids are kept when the file was saved with the same model file; otherwise the replies are
 * tokenized from their text. The file must not be truncated while it is read. Errors: IO, FORMAT
 * (names the line), MEMORY; the conversation stays as it was. */
TC_API int tc_chat_save(const tc_chat *chat, const char *path, tc_error *err);
TC_API int tc_chat_load(tc_chat *chat, const char *path, tc_error *err);

/* Ends the running reply soon, or else the next one. Safe from any thread and from a signal
 * handler. The request is used up by the reply it meets, also if that ends for another reason. */
TC_API void tc_chat_cancel(tc_chat *chat);

/* The session beneath, for its info. Evaluating in it directly is allowed: the next reply finds
 * the common prefix by itself. Owned by the chat. */
TC_API tc_session *tc_chat_session(tc_chat *chat);

/* ---- measuring ------------------------------------------------------------------------------- */

/* Opens a model of a built-in shape with random weights, made in memory or by the GPU on itself: as
 * fast as a real model of this shape, before there is one. It has no tokenizer.
 * name: one of tc_shape_name(). precision: "w4a16" (also NULL) or "w16a16". group_size: 32, 64 or
 * 128 of w4a16, or 0 for the largest that divides the model's sizes (64 for falcon-7b, else 128); 0
 * with w16a16. params, model and the rest as for tc_model_open.
 * Errors: those of tc_model_open but IO and FORMAT; ARGUMENT (no such shape, precision or group
 * size), MEMORY (says what is needed). */
TC_API int tc_model_open_shape(const char *name, const char *precision, int group_size,
                               const tc_model_params *params, tc_model **model, tc_error *err);

/* The names of the built-in shapes: index 0, 1, ... until NULL. "tiny" is for tests. Static
 * storage. */
TC_API const char *tc_shape_name(int index);

/* The rate at which this model's device reads memory with the model's threads, in bytes per second,
 * by a plain read loop over `bytes` (0 = 1 GiB, less if memory is short) repeated a few times;
 * the median. Errors: MEMORY. */
TC_API int tc_read_bandwidth(const tc_model *model, size_t bytes, double *bytes_per_second,
                             tc_error *err);

/* What this machine has to run models with: driver, GPUs, NVRTC, the cache of compiled kernels, the
 * CPU, and what the device "auto" takes. Hands over one line of text after the other, without
 * newlines (NULL: to nobody). Opens each GPU for a moment and has NVRTC compile a small kernel.
 * Returns 1 if "auto" takes a GPU for any model that the GPU engine can run, else 0; a line says
 * why not. */
TC_API int tc_doctor(void (*line)(void *user, const char *text), void *user);

/* One row of the self-test. */
typedef struct tc_selftest_row {
    const char *name, *shape, *device; /* for people; valid during the call */
    int tokens;                        /* contexts of 1 to so many positions were compared */
    double prefill_error; /* relative error (L2) of the worst position's logits, tokens evaluated */
    double decode_error;  /* together and one by one; of sampling: the share of other choices */
    double limit;         /* what both may be */
    int ok;
    const char *error; /* what went wrong when this row could not be computed, else NULL */
} tc_selftest_row;

/* Compares a GPU's results with the CPU's. path NULL: a table of small models with random weights
 * that between them need every kernel, with sizes, contexts and group sizes of all kinds. Else this
 * model file with a fixed prompt. Rows are handed over in the calling thread as they come. Of
 * `params` (NULL = defaults) device ("auto" is "cuda"), threads, progress and user count. Whether
 * the GPU is right is what the rows say: they are no part of the result.
 * Errors: DEVICE (no GPU that can be used), ARGUMENT (another device), CANCELLED, those of
 * tc_model_open for `path`. */
TC_API int tc_selftest(const char *path, const tc_model_params *params,
                       void (*row)(void *user, const tc_selftest_row *row), void *user,
                       tc_error *err);

/* The CUDA source that is compiled for the GPU, file by file: index 0, 1, ... until NULL; *name
 * (NULL allowed) is the file's name. It is free-standing: NVRTC and nvcc compile it without any
 * header. Static storage. */
TC_API const char *tc_kernel_source(int index, const char **name);

/* Seconds of a monotonic clock with an arbitrary start. */
TC_API double tc_seconds(void);

#ifdef __cplusplus
}
#endif

#endif /* TINYCHAT_H */
