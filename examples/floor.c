// What the decodes of a run cost in C, without any of this program: the floor that its times are held against.
//
//     sia-local bench --synthetic qwen3-0.6b --traces build/traces      # writes what every arm asks of llama.cpp
//     site=$(python -c 'import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parents[1])')
//     cc -O2 -I "$site/include" examples/floor.c -o build/floor -L "$site/llama_cpp/lib" -lllama -Wl,-rpath,"$site/llama_cpp/lib"
//     build/floor 3 build/traces/*.trace
//
// Prints ms a run for each trace: the median of the repetitions, and the fastest. The format is that of
// sia_local/bench/replay.py. Let nothing else run.

#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_CONTEXTS 8
#define MAX_REPETITIONS 100

enum { DECODE, SEQ_RM, SEQ_CP, SET_EMBEDDINGS };

typedef struct {
    int32_t context, kind, args[4];
    struct llama_batch batch;
} operation;

static void fail(const char * what, const char * name) {
    fprintf(stderr, "floor: %s: %s\n", name, what);
    exit(1);
}

static void * allocate(size_t count, size_t size) {
    void * memory = calloc(count ? count : 1, size);
    if (!memory) fail("out of memory", "trace");
    return memory;
}

static void read_all(FILE * in, void * to, size_t size, size_t count, const char * name) {
    if (fread(to, size, count, in) != count) fail("the trace ends early", name);
}

static int32_t read_int(FILE * in, const char * name) {
    int32_t number;
    read_all(in, &number, sizeof number, 1, name);
    return number;
}

static char * read_text(FILE * in, const char * name) {
    int32_t n = read_int(in, name);
    char * text = allocate(n + 1, 1);
    read_all(in, text, 1, n, name);
    return text;
}

static int32_t * read_ints(FILE * in, int32_t n, const char * name) {
    int32_t * numbers = allocate(n, sizeof *numbers);
    read_all(in, numbers, sizeof *numbers, n, name);
    return numbers;
}

static struct llama_batch read_batch(FILE * in, int32_t n_embd, const char * name) {
    struct llama_batch batch = {0};
    int32_t n = batch.n_tokens = read_int(in, name);
    if (n_embd) {
        batch.embd = allocate((size_t) n * n_embd, sizeof(float));
        read_all(in, batch.embd, sizeof(float), (size_t) n * n_embd, name);
    } else {
        batch.token = read_ints(in, n, name);
    }
    batch.pos = read_ints(in, n, name);
    batch.n_seq_id = read_ints(in, n, name);
    int32_t * output = read_ints(in, n, name);
    batch.logits = allocate(n, 1);
    batch.seq_id = allocate(n, sizeof *batch.seq_id);
    for (int32_t i = 0; i < n; i++) {
        batch.logits[i] = (int8_t) output[i];
        batch.seq_id[i] = read_ints(in, batch.n_seq_id[i], name);
    }
    free(output);
    return batch;
}

static void free_batch(struct llama_batch batch) {
    for (int32_t i = 0; i < batch.n_tokens; i++) free(batch.seq_id[i]);
    free(batch.token), free(batch.embd), free(batch.pos), free(batch.n_seq_id), free(batch.seq_id), free(batch.logits);
}

static void run(struct llama_context ** contexts, operation * ops, int32_t from, int32_t to, const char * name) {
    for (int32_t i = from; i < to; i++) {
        struct llama_context * context = contexts[ops[i].context];
        int32_t * a = ops[i].args;
        switch (ops[i].kind) {
            case DECODE:
                if (llama_decode(context, ops[i].batch) != 0) fail("llama_decode failed", name);
                llama_synchronize(context);
                break;
            case SEQ_RM: llama_memory_seq_rm(llama_get_memory(context), a[0], a[1], a[2]); break;
            case SEQ_CP: llama_memory_seq_cp(llama_get_memory(context), a[0], a[1], a[2], a[3]); break;
            case SET_EMBEDDINGS: llama_set_embeddings(context, a[0]); break;
            default: fail("unknown operation", name);
        }
    }
}

// What sia_local/values/model.py does for values that need no logits: the graph ends before the output layer.
static bool stop_at_final_norm(struct ggml_tensor * tensor, bool ask, void * data) {
    (void) data;
    return ask && !strcmp(tensor->name, "result_norm");
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * t.tv_sec + 1e-6 * t.tv_nsec;
}

static int ascending(const void * a, const void * b) {
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void measure(const char * name, int repetitions) {
    FILE * in = fopen(name, "rb");
    if (!in) fail("cannot be read", name);
    char magic[4];
    read_all(in, magic, 1, 4, name);
    if (memcmp(magic, "SIAT", 4) || read_int(in, name) != 1) fail("not a trace of version 1", name);
    int32_t n_contexts = read_int(in, name), n_ops = read_int(in, name), start = read_int(in, name);
    if (n_contexts > MAX_CONTEXTS) fail("too many contexts", name);

    struct llama_model * models[MAX_CONTEXTS];
    struct llama_context * contexts[MAX_CONTEXTS];
    char * paths[MAX_CONTEXTS];
    int32_t n_embd[MAX_CONTEXTS];
    for (int32_t i = 0; i < n_contexts; i++) {
        int32_t * given = read_ints(in, 9, name);
        struct llama_context_params params = llama_context_default_params();
        params.n_ctx = given[0];
        params.n_batch = params.n_ubatch = given[1];
        params.n_seq_max = given[2];
        params.n_threads = params.n_threads_batch = given[3];
        params.type_k = given[4];
        params.type_v = given[5];
        params.flash_attn_type = given[6];
        params.pooling_type = LLAMA_POOLING_TYPE_NONE;
        params.kv_unified = true;
        params.no_perf = true;
        if (given[7]) params.cb_eval = stop_at_final_norm;
        n_embd[i] = given[8];
        free(given);
        paths[i] = read_text(in, name);
        char * adapter = read_text(in, name);
        models[i] = NULL;
        for (int32_t j = 0; j < i; j++)
            if (!strcmp(paths[i], paths[j])) models[i] = models[j];
        if (!models[i]) models[i] = llama_model_load_from_file(paths[i], llama_model_default_params());
        if (!models[i]) fail("its model cannot be loaded", name);
        contexts[i] = llama_init_from_model(models[i], params);
        if (!contexts[i]) fail("its context cannot be made", name);
        if (*adapter) {
            struct llama_adapter_lora * lora = llama_adapter_lora_init(models[i], adapter);
            float scale = 1.0f;
            if (!lora || llama_set_adapters_lora(contexts[i], &lora, 1, &scale)) fail("its adapter cannot be loaded", name);
        }
        free(adapter);
    }

    operation * ops = allocate(n_ops, sizeof *ops);
    int32_t decodes = 0, rows = 0;
    for (int32_t i = 0; i < n_ops; i++) {
        ops[i].context = read_int(in, name);
        ops[i].kind = read_int(in, name);
        if (ops[i].kind == DECODE) {
            ops[i].batch = read_batch(in, n_embd[ops[i].context], name);
            if (i >= start) decodes++, rows += ops[i].batch.n_tokens;
        } else {
            read_all(in, ops[i].args, sizeof(int32_t), 4, name);
        }
    }
    fclose(in);

    run(contexts, ops, 0, n_ops, name);  // what lies before `start`, and once to warm up
    double times[MAX_REPETITIONS];
    for (int r = 0; r < repetitions; r++) {
        double started = now_ms();
        run(contexts, ops, start, n_ops, name);
        times[r] = now_ms() - started;
    }
    qsort(times, repetitions, sizeof *times, ascending);
    const char * slash = strrchr(name, '/');
    printf("%-44s %8.1f ms   fastest %8.1f   %4d decodes %6d rows\n", slash ? slash + 1 : name, times[repetitions / 2],
           times[0], decodes, rows);
    fflush(stdout);

    for (int32_t i = 0; i < n_ops; i++)
        if (ops[i].kind == DECODE) free_batch(ops[i].batch);
    free(ops);
    for (int32_t i = 0; i < n_contexts; i++) llama_free(contexts[i]);
    for (int32_t i = 0; i < n_contexts; i++) {
        int shared = 0;
        for (int32_t j = 0; j < i; j++) shared |= models[j] == models[i];
        if (!shared) llama_model_free(models[i]);
    }
    for (int32_t i = 0; i < n_contexts; i++) free(paths[i]);
}

int main(int argc, char ** argv) {
    int repetitions = argc > 2 ? atoi(argv[1]) : 0;
    if (repetitions < 1 || repetitions > MAX_REPETITIONS) {
        fprintf(stderr, "usage: floor REPETITIONS TRACE...\n");
        return 2;
    }
    llama_log_set(quiet, NULL);
    llama_backend_init();
    for (int i = 2; i < argc; i++) measure(argv[i], repetitions);
    llama_backend_free();
    return 0;
}
