/* NULL in every place of the public functions where something is needed: an error, never
 * a crash. */
#include "program.h"
#include "test.h"
#include "tiny_model.h"
#include "tinychat.h"

static char folder[PROGRAM_PATH], path[PROGRAM_PATH + 16];
static tc_model *model;
static tc_session *session;
static tc_chat *chat;
static tc_error err;

/* The call failed, with this code and a message that has `text` in it. */
static bool refused(int code, int expected, const char *text) {
    return code == expected && err.code == code && strstr(err.message, text);
}
#define NEEDS(call, text) CHECK(refused(call, TC_ERR_ARGUMENT, text))

TEST(models_and_tokens_refuse_null) {
    int32_t ids[4] = {1, 2, 3, 4};
    char text[4];
    size_t n;
    double rate;
    tc_model *opened;
    NEEDS(tc_model_open(NULL, NULL, &opened, &err), "path");
    NEEDS(tc_model_open(path, NULL, NULL, &err), "model");
    NEEDS(tc_model_open_shape(NULL, NULL, 0, NULL, &opened, &err), "name");
    NEEDS(tc_model_open_shape("tiny", NULL, 0, NULL, NULL, &err), "model");
    NEEDS(tc_model_verify(NULL, NULL, NULL, &err), "model");
    NEEDS(tc_model_export_kernels(NULL, path, &err), "model");
    NEEDS(tc_model_export_kernels(model, NULL, &err), "path");
    NEEDS(tc_selftest(NULL, NULL, NULL, NULL, &err), "row");
    NEEDS(tc_read_bandwidth(NULL, 1, &rate, &err), "model");
    NEEDS(tc_read_bandwidth(model, 1, NULL, &err), "bytes_per_second");
    NEEDS(tc_tokenize(NULL, "a", 1, 0, ids, 4, &n, &err), "model");
    NEEDS(tc_tokenize(model, NULL, 1, 0, ids, 4, &n, &err), "text");
    NEEDS(tc_tokenize(model, "a", 1, 0, NULL, 4, &n, &err), "ids");
    NEEDS(tc_tokenize(model, "a", 1, 0, ids, 4, NULL, &err), "n is");
    CHECK(tc_tokenize(model, NULL, 0, 0, NULL, 0, &n, &err) == TC_OK && n == 0);
    NEEDS(tc_detokenize(NULL, ids, 1, text, 4, &n, &err), "model");
    NEEDS(tc_detokenize(model, NULL, 1, text, 4, &n, &err), "ids");
    NEEDS(tc_detokenize(model, ids, 1, NULL, 4, &n, &err), "text");
    NEEDS(tc_detokenize(model, ids, 1, text, 4, NULL, &err), "len");
    CHECK(tc_model_open(NULL, NULL, &opened, NULL) == TC_ERR_ARGUMENT);
    CHECK(tc_model_get_info(NULL).vocab_size == 0 && tc_is_stop_id(NULL, 2) == 0);
    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* no GPU and no compiler, if there are */
    setenv("TINYCHAT_NVRTC", folder, 1);
    CHECK(tc_doctor(NULL, NULL) == 0);
    tc_model_close(NULL);
}

TEST(sessions_refuse_null) {
    tc_session *opened;
    int32_t id = 1;
    NEEDS(tc_session_open(NULL, NULL, &opened, &err), "model");
    NEEDS(tc_session_open(model, NULL, NULL, &err), "session");
    NEEDS(tc_eval(NULL, &id, 1, &err), "session");
    NEEDS(tc_eval(session, NULL, 1, &err), "no token ids");
    NEEDS(tc_eval(session, &id, 0, &err), "no token ids");
    NEEDS(tc_eval_all(session, &id, 1, NULL, NULL, &err), "fn");
    CHECK(refused(tc_eval(session, &id, (size_t)-1, &err), TC_ERR_CONTEXT, "do not fit"));
    NEEDS(tc_sample(NULL, NULL, &id, &err), "session");
    NEEDS(tc_sample(session, NULL, NULL, &err), "id");
    CHECK(tc_session_get_info(NULL).ctx_size == 0 && !tc_logits(NULL));
    CHECK(tc_session_seed(NULL, 5) == 5 && tc_kv_length(NULL) == 0 && !tc_kv_ids(NULL));
    tc_kv_truncate(NULL, 0);
    tc_session_cancel(NULL);
    tc_session_close(NULL);
}

TEST(chats_refuse_null) {
    tc_chat *opened;
    tc_reply reply;
    int32_t ids[4];
    size_t n = 1;
    NEEDS(tc_chat_open(NULL, NULL, &opened, &err), "model");
    NEEDS(tc_chat_open(model, NULL, NULL, &err), "chat");
    NEEDS(tc_chat_send(NULL, "a", 1, NULL, NULL, &reply, &err), "chat");
    NEEDS(tc_chat_send(chat, NULL, 1, NULL, NULL, &reply, &err), "text");
    CHECK(!reply.text && reply.reply_tokens == 0);
    NEEDS(tc_chat_regenerate(NULL, NULL, NULL, &reply, &err), "chat");
    NEEDS(tc_chat_add_turn(NULL, "a", 1, "b", 1, &err), "chat");
    NEEDS(tc_chat_add_turn(chat, NULL, 1, "b", 1, &err), "text");
    NEEDS(tc_chat_add_turn(chat, "a", 1, NULL, 1, &err), "text");
    NEEDS(tc_chat_set_system(NULL, "a", &err), "chat");
    NEEDS(tc_chat_set_sampling(chat, NULL, &err), "sampling");
    NEEDS(tc_chat_render(NULL, "a", 1, ids, 4, &n, &err), "chat");
    NEEDS(tc_chat_render(chat, "a", 1, ids, 4, NULL, &err), "n is");
    NEEDS(tc_chat_render(chat, "a", 1, NULL, 4, &n, &err), "ids");
    NEEDS(tc_chat_save(NULL, path, &err), "chat");
    NEEDS(tc_chat_save(chat, NULL, &err), "path");
    NEEDS(tc_chat_load(NULL, path, &err), "chat");
    NEEDS(tc_chat_load(chat, NULL, &err), "path");
    CHECK(tc_chat_turns(chat) == 0 && tc_chat_turns(NULL) == 0 && tc_chat_undo(NULL) == 0);
    CHECK(!tc_chat_user_text(NULL, 0, &n) && n == 0 && !tc_chat_reply_text(NULL, 0, NULL));
    CHECK(!*tc_chat_system(NULL) && !*tc_chat_template(NULL) && !tc_chat_session(NULL));
    CHECK(tc_chat_get_sampling(NULL).top_k == tc_default_sampling().top_k);
    tc_chat_set_max_tokens(NULL, 1);
    tc_chat_reset(NULL);
    tc_chat_cancel(NULL);
    tc_chat_close(NULL);
}

static bool open_all(void) {
    tiny_model tiny = tiny_model_default();
    tc_model_params params = tc_model_default_params();
    params.device = "cpu";
    params.threads = 1;
    if (!program_folder(folder)) return false;
    snprintf(path, sizeof path, "%s/tiny.bin", folder);
    if (tiny_model_write(&tiny, path)) return false;
    return !tc_model_open(path, &params, &model, &err) &&
           !tc_session_open(model, NULL, &session, &err) && !tc_chat_open(model, NULL, &chat, &err);
}

static void close_all(void) {
    tc_chat_close(chat);
    tc_session_close(session);
    tc_model_close(model);
    program_remove_folder(folder);
}

TEST_MAIN(if (!open_all()) return 1; RUN(models_and_tokens_refuse_null) RUN(sessions_refuse_null)
              RUN(chats_refuse_null) close_all();)
