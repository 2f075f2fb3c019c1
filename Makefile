# tinychat - "make help" lists the targets.
MAKEFLAGS += -r
.DEFAULT_GOAL := all

CC ?= cc
CFLAGS ?= -O2 -g
LDLIBS = -lm -ldl -lpthread
STD = -std=c99 -pedantic -Wall -Wextra
INCLUDE = -I. -Isrc
PREFIX ?= /usr/local

# config=release (default) or sanitize: objects of each lie in a folder of their own.
config ?= release
BUILD = build/$(config)
FLAGS_release =
FLAGS_sanitize = -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
ALL_CFLAGS = $(STD) $(CFLAGS) $(FLAGS_$(config)) $(INCLUDE)

LIB_OBJECTS = $(patsubst %.c,$(BUILD)/%.o,$(wildcard src/*.c))
CONVERT_OBJECTS = $(patsubst %.c,$(BUILD)/%.o,$(filter-out convert/main.c,$(wildcard convert/*.c)))
TESTS = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
FUZZ_TARGETS = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz/fuzz_*.c))
GENERATED = tinychat.c kernels.cu.inc

## all            ./chat and convert/convert (default)
all: chat convert/convert

# The programs in the project's folder are those of the config that was made last.
chat: $(BUILD)/chat always
	@cmp -s $< $@ || { echo cp $< $@ && cp $< $@; }
convert/convert: $(BUILD)/convert/convert always
	@cmp -s $< $@ || { echo cp $< $@ && cp $< $@; }

$(BUILD)/chat: $(BUILD)/main.o $(BUILD)/libtinychat.a
	$(CC) $(ALL_CFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/convert/convert: $(BUILD)/convert/main.o $(BUILD)/libconvert.a $(BUILD)/libtinychat.a
	$(CC) $(ALL_CFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/libtinychat.a: $(LIB_OBJECTS)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/libconvert.a: $(CONVERT_OBJECTS)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libconvert.a $(BUILD)/libtinychat.a
	$(CC) $(ALL_CFLAGS) $^ $(LDLIBS) -o $@
# The driver and the compiler of tests that need no GPU.
FAKES = $(BUILD)/tests/fake/libcuda.so.1 $(BUILD)/tests/fake/libnvrtc.so
$(BUILD)/tests/fake/libcuda.so.1: tests/fake_cuda.c tests/fake_cuda.h
$(BUILD)/tests/fake/libnvrtc.so: tests/fake_nvrtc.c
$(FAKES): src/gpu_driver.h src/base.h
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Itests -shared -fPIC -Wl,-soname,$(@F) $(filter %.c,$^) -ldl -lpthread -o $@
$(BUILD)/tests/test_fake_gpu $(BUILD)/tests/test_loading: | $(FAKES)
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libconvert.a $(BUILD)/libtinychat.a
	$(CC) $(ALL_CFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/bench/%.o: ALL_CFLAGS += -Iconvert
$(BUILD)/tests/%.o: ALL_CFLAGS += -Iconvert -Itests
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@
-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

## demo           builds, then chats with the small model that ships (three fixed questions when
##                there is no terminal)
demo: all
	@sh tests/demo.sh

## test           builds and runs every test (a C compiler and make; uses more where present)
test: all tests
	@sh tests/run.sh $(BUILD) $(wildcard tests/test_*.sh) $(TESTS)
tests: $(TESTS) $(BUILD)/bench/architectures

## check          test, then the gates: generated files, warnings of gcc and clang, sanitizers,
##                fuzz targets, symbols, another processor
check: test gates
gates:
	@sh tests/gates.sh

## fuzz           random changes of inputs, with sanitizers: MUTATIONS=1000 SEED=1
fuzz:
	@$(MAKE) --no-print-directory config=sanitize fuzz-targets
	@sh tests/fuzz/run.sh build/sanitize $(MUTATIONS) $(SEED)
fuzz-targets: $(FUZZ_TARGETS) $(BUILD)/convert/convert

## gpu-test       on a machine with an NVIDIA GPU: accuracy on every architecture's path, sanitizers
gpu-test:
	@sh tests/gpu_test.sh

## gpu-bench      on a machine with an NVIDIA GPU: decode and prefill of the built-in shapes
gpu-bench: all $(BUILD)/bench/make_model $(BUILD)/bench/startup
	@sh bench/gpu_bench.sh

## architectures  what the kernels of decode use on each GPU architecture, and predicted times (with
##                NVRTC, without a GPU): SHAPE=llama-2-7b PRECISION=w4a16 GPU=sm_86
SHAPE = llama-2-7b
PRECISION = w4a16
architectures: $(BUILD)/bench/architectures
	@$< $(SHAPE) $(PRECISION) $(if $(GPU),"$(GPU)")

## amalgamate     writes tinychat.c and kernels.cu.inc from src/
amalgamate:
	@sh src/amalgamate.sh .

## format         clang-format over everything hand-written
format:
	clang-format -i main.c tinychat.h src/*.[ch] convert/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] bench/*.c examples/*.c

## install        PREFIX=/usr/local DESTDIR=
install: all
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 chat "$(DESTDIR)$(PREFIX)/bin/tinychat"
	install -m 755 convert/convert "$(DESTDIR)$(PREFIX)/bin/tinychat-convert"

## uninstall      removes what install has put there
uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/tinychat" "$(DESTDIR)$(PREFIX)/bin/tinychat-convert"

## clean          removes everything built
clean:
	rm -rf build chat convert/convert

## help           this list
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

.PHONY: all demo test tests check gates fuzz fuzz-targets gpu-test gpu-bench architectures amalgamate format install uninstall \
        clean help always
# Objects that lie between a source and a program are kept. (".SECONDARY:" alone would take every
# file for one of these, and build nothing for a config whose programs were never made.)
.SECONDARY: $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/*.c tests/fuzz/*.c bench/*.c))
