/* Asks a model one question and prints the answer as it is made.
 *     cc -O2 minimal.c tinychat.c -lm -ldl -lpthread -o minimal && ./minimal model.bin "Hello!" */
#include "tinychat.h"
#include <stdio.h>
#include <string.h>

static int print_text(void *user, const char *text, size_t len) {
    (void)user;
    return fwrite(text, 1, len, stdout) != len || fflush(stdout);
}

int main(int argc, char **argv) {
    const char *question = argc > 2 ? argv[2] : "Hello!";
    tc_error err;
    tc_model *model = NULL;
    tc_chat *chat = NULL;
    int code = tc_model_open(argc > 1 ? argv[1] : "model.bin", NULL, &model, &err);
    if (!code) code = tc_chat_open(model, NULL, &chat, &err);
    if (!code) code = tc_chat_send(chat, question, strlen(question), print_text, NULL, NULL, &err);
    puts(code ? err.message : "");
    tc_chat_close(chat);
    tc_model_close(model);
    return code;
}
