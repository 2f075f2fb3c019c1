/* The self-test itself, with the CPU in the GPU's place: a backend that is right passes every row,
 * and each kind of mistake is found. */
#include "src/session.h"
#include "test.h"

#include <math.h>

typedef struct seen {
    int rows, ok, failed, wrong_prefill, wrong_decode, sampling_wrong;
    char first_error[256];
    int stop_after; /* rows; 0: never */
} seen;

static void on_row(void *user, const tc_selftest_row *row) {
    seen *s = user;
    bool sampling = row->limit > 0.01;
    s->rows++;
    s->ok += row->ok;
    CHECK(row->name && *row->name && row->shape && row->device);
    CHECK(row->ok ==
          (!row->error && row->prefill_error <= row->limit && row->decode_error <= row->limit));
    if (row->error && !s->failed++)
        snprintf(s->first_error, sizeof s->first_error, "%s", row->error);
    s->sampling_wrong += sampling && row->decode_error > row->limit;
    s->wrong_prefill += !sampling && !(row->prefill_error <= row->limit);
    s->wrong_decode += !sampling && !(row->decode_error <= row->limit);
}

static int on_progress(void *user, double fraction, const char *what) {
    const seen *s = user;
    CHECK(fraction > 0 && fraction <= 1 && what);
    return s->stop_after && s->rows >= s->stop_after;
}

static seen run(const tc__backend *backend, int stop_after, int *code, tc_error *err) {
    seen s = {0};
    tc_model_params params = tc_model_default_params();
    s.stop_after = stop_after;
    params.progress = on_progress;
    params.user = &s;
    *code = tc__selftest_with(backend, 16, &params, on_row, &s, err);
    return s;
}

/* ---- backends with a mistake ---- */

static tc__backend broken; /* the CPU's, with one function replaced */

static int no_device(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                     tc_error *err) {
    (void)weights, (void)params;
    *device = NULL;
    return tc__fail(err, TC_ERR_DEVICE, "there is no such device");
}

/* Every family but those with ALiBi. */
static int no_alibi(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                    tc_error *err) {
    *device = NULL;
    if (weights->arch.position == TC__POSITION_ALIBI)
        return tc__fail(err, TC_ERR_UNSUPPORTED, "no kernels for ALiBi");
    return tc__cpu_backend()->open(weights, params, device, err);
}

static const float *one_logit_off(tc__cache *cache) {
    float *logits = (float *)tc__cpu_backend()->logits(cache);
    logits[7] += 10;
    return logits;
}

typedef struct handed {
    tc__logits_fn each;
    void *user;
} handed;

static int not_finite(void *user, size_t position, const float *logits, int vocab_size) {
    const handed *h = user;
    ((float *)logits)[0] = NAN;
    return h->each(h->user, position, logits, vocab_size);
}

static int prefill_not_finite(tc__cache *cache, const int32_t *ids, size_t n, size_t pos,
                              tc__logits_fn each, void *user, const tc__flag *cancel,
                              tc_error *err) {
    handed h = {each, user};
    return tc__cpu_backend()->eval(cache, ids, n, pos, each ? not_finite : NULL, &h, cancel, err);
}

static int first_id(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                    size_t n_context, double u, int32_t *id, tc_error *err) {
    int code = tc__cpu_backend()->sample(cache, sampling, context, n_context, u, id, err);
    *id = 0;
    return code;
}

static int run_broken(seen *s, tc_error *err) {
    int code;
    *s = run(&broken, 0, &code, err);
    broken = *tc__cpu_backend();
    return code;
}

TEST(a_right_backend_passes) {
    int code;
    tc_error err;
    seen s = run(tc__cpu_backend(), 0, &code, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    CHECK(s.rows > 12 && s.ok == s.rows);
    printf("    %d rows\n", s.rows);
}

TEST(mistakes_are_found) {
    seen s;
    tc_error err;
    broken = *tc__cpu_backend();
    broken.logits = one_logit_off;
    CHECK(run_broken(&s, &err) == TC_OK);
    CHECK(s.wrong_decode == s.rows - 1 && s.wrong_prefill == 0);

    broken.eval = prefill_not_finite;
    CHECK(run_broken(&s, &err) == TC_OK);
    CHECK(s.wrong_prefill == s.rows - 1 && s.wrong_decode == 0 && s.sampling_wrong == 0);

    broken.sample = first_id;
    CHECK(run_broken(&s, &err) == TC_OK);
    CHECK(s.sampling_wrong == 1 && s.ok == s.rows - 1);

    broken.open = no_alibi;
    CHECK(run_broken(&s, &err) == TC_OK);
    CHECK(s.failed > 1 && s.ok == s.rows - s.failed && strstr(s.first_error, "ALiBi"));
}

TEST(a_machine_without_the_device_is_an_error) {
    seen s;
    tc_error err;
    tc_model_params params = tc_model_default_params();
    broken = *tc__cpu_backend();
    broken.open = no_device;
    CHECK(run_broken(&s, &err) == TC_ERR_DEVICE && strstr(err.message, "no such device"));
    CHECK(s.rows == 0);
    params.device = "cpu";
    CHECK(tc_selftest(NULL, &params, on_row, &s, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_selftest(NULL, NULL, NULL, NULL, &err) == TC_ERR_ARGUMENT);
    params = tc_model_default_params();
    params.head_bits = 8; /* which the rows do not have */
    CHECK(tc_selftest(NULL, &params, on_row, &s, &err) == TC_ERR_ARGUMENT &&
          strstr(err.message, "head_bits"));
}

TEST(it_can_be_cancelled) {
    int code;
    tc_error err;
    seen s = run(tc__cpu_backend(), 1, &code, &err);
    CHECK(code == TC_ERR_CANCELLED && s.rows == 1);
}

TEST(a_model_file_is_one_row) {
    tc_model_params params = tc_model_default_params();
    seen s = {0};
    tc_error err;
    params.threads = 2;
    int code = tc__selftest_model(tc__cpu_backend(), "models/demo.bin", &params, on_row, &s, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    CHECK(s.rows == 1 && s.ok == 1);
    CHECK(tc__selftest_model(tc__cpu_backend(), "models/none.bin", &params, on_row, &s, &err) ==
          TC_ERR_IO);
    CHECK(s.rows == 1);
}

TEST_MAIN(RUN(a_right_backend_passes) RUN(mistakes_are_found)
              RUN(a_machine_without_the_device_is_an_error) RUN(it_can_be_cancelled)
                  RUN(a_model_file_is_one_row))
