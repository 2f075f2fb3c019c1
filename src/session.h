/* session - an open model and the KV caches on it: what stands behind tc_model and tc_session.
 *
 * A session knows which ids its cache holds; the cache itself belongs to the backend. Everything a
 * model holds is immutable once it is open, so that any number of sessions may share it.
 */
#ifndef TC_SESSION_H
#define TC_SESSION_H

#include "backend.h"
#include "shapes.h"
#include "stream.h"
#include "template.h"

struct tc_model {
    tc__model_file file;
    tc__weights weights;
    tc__tokenizer *tokenizer;   /* NULL: only token ids can be used */
    tc__template chat_template; /* the model file's; without a tokenizer all of it is NULL */
    tc__buf template_storage;
    int32_t *stop_ids; /* [n_stop_ids], each in the vocabulary */
    size_t n_stop_ids;
    const tc__backend *backend;
    tc__device *device; /* the weights on the backend */
    char *name, *family;
    char precision[48];
};

struct tc_session {
    tc_model *model;
    tc__cache *cache;
    int32_t *ids; /* [ctx_size], the first `length` are in the cache */
    size_t length;
    int ctx_size;
    bool has_logits;      /* of position length - 1 */
    uint64_t seed, draws; /* random numbers used since seeding */
    tc__flag cancel;
};

/* tc_model_open on a backend of the caller's choice (the tests bring their own). Errors: as there.
 * params is not NULL. */
TC_INTERNAL int tc__model_open_with(const tc__backend *backend, const char *path,
                                    const tc_model_params *params, tc_model **model, tc_error *err);

/* The same for a shape of one's own (shapes.h), without a file. */
TC_INTERNAL int tc__model_open_spec(const tc__backend *backend, const tc__shape_spec *spec,
                                    const char *precision, int group_size,
                                    const tc_model_params *params, tc_model **model, tc_error *err);

/* tc_selftest's table with a backend in the GPU's place, and a model file on it. most_tokens: of a
 * row, for the tests of the self-test. */
TC_INTERNAL int tc__selftest_with(const tc__backend *backend, int most_tokens,
                                  const tc_model_params *params,
                                  void (*row)(void *user, const tc_selftest_row *row), void *user,
                                  tc_error *err);
TC_INTERNAL int tc__selftest_model(const tc__backend *backend, const char *path,
                                   const tc_model_params *params,
                                   void (*row)(void *user, const tc_selftest_row *row), void *user,
                                   tc_error *err);

/* UNSUPPORTED if the model has no tokenizer. */
TC_INTERNAL int tc__need_tokenizer(const tc_model *model, tc_error *err);

/* Why this session's context could not be larger, for messages: "the model's maximum", with the
 * sliding window that ends it; NULL if it could. */
#define TC__LIMIT_TEXT 160
TC_INTERNAL const char *tc__context_limit(const tc_session *session, char text[TC__LIMIT_TEXT]);

#endif /* TC_SESSION_H */
