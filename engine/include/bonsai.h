/* SPDX-License-Identifier: Apache-2.0
 *
 * Bonsai: text-to-image with 1-bit and ternary diffusion transformers, from one GGUF file.
 *
 *     bonsai_context *ctx;
 *     if (bonsai_open("model.gguf", NULL, &ctx) != BONSAI_OK) {
 *         fprintf(stderr, "%s\n", bonsai_last_error());
 *         return 1;
 *     }
 *     bonsai_generate_params params;
 *     bonsai_generate_params_init(&params);
 *     params.prompt = "a red apple on a blue background";
 *     params.seed = 42;
 *     bonsai_image image = {0};
 *     if (bonsai_generate(ctx, &params, &image) == BONSAI_OK)
 *         bonsai_image_save_png(&image, "apple.png");
 *     else
 *         fprintf(stderr, "%s\n", bonsai_last_error());
 *     bonsai_image_free(&image);
 *     bonsai_close(ctx);
 *
 * Rules that hold everywhere:
 *  - Strings are UTF-8 and NUL-terminated. Sizes are bytes, times are seconds.
 *  - The library never prints, aborts, exits or changes the locale. Its one signal handler, for
 *    SIGBUS while a file is open, makes a model that others cut short an error instead of a crash;
 *    it passes all other signals on and goes with the last file. BONSAI_SIGBUS=off keeps it away.
 *  - A call that can fail returns a bonsai_status; the reason, in a sentence that says what to do,
 *    is bonsai_last_error() on the same thread until that thread's next failing call.
 *  - Structs that callers fill begin with struct_size; let the matching _init function set it and
 *    the defaults. Structs that the library fills need struct_size set by the caller to sizeof.
 *    They only ever grow at the end.
 *  - A context may be used from any thread. Calls that compute on one context wait for each other;
 *    to draw at the same time, open the file once more: the mapped weights are shared by the
 *    operating system. It belongs to the process that opened it: a fork leaves its threads behind.
 */
#ifndef BONSAI_H
#define BONSAI_H

#include <stddef.h>
#include <stdint.h>

#define BONSAI_VERSION "0.1.0"
/* Raised whenever a struct or a function below changes in a way that old callers would notice. */
#define BONSAI_ABI_VERSION 1

#if defined(_WIN32)
#if defined(BONSAI_BUILD)
#define BONSAI_API __declspec(dllexport)
#else
#define BONSAI_API __declspec(dllimport)
#endif
#else
#define BONSAI_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cdef begin: Python reads what stands between these marks. */

typedef enum bonsai_status {
    BONSAI_OK = 0,
    BONSAI_ERR_ARGUMENT = -1,    /* a parameter is out of range or missing */
    BONSAI_ERR_IO = -2,          /* a file cannot be opened, read or written */
    BONSAI_ERR_FORMAT = -3,      /* a file is damaged or not what it should be */
    BONSAI_ERR_UNSUPPORTED = -4, /* valid, but not by this build, device or version */
    BONSAI_ERR_MEMORY = -5,      /* not enough memory */
    BONSAI_ERR_CANCELLED = -6,   /* a callback asked to stop, or bonsai_cancel was called */
    BONSAI_ERR_INTERNAL = -7     /* a bug in the library */
} bonsai_status;

/* ---- library --------------------------------------------------------------------------------- */

/* The version and ABI version the library was built with; compare with the macros above. */
BONSAI_API const char* bonsai_version(void);
BONSAI_API uint32_t bonsai_abi_version(void);

/* Why this thread's last failing call failed, at most 4095 bytes of UTF-8. Never NULL; valid until
 * the next failing call on this thread. */
BONSAI_API const char* bonsai_last_error(void);

/* "out of memory", "cancelled", ...: a short name of a status. */
BONSAI_API const char* bonsai_status_text(bonsai_status status);

/* Releases text or bytes that a function below returned through a pointer. NULL is allowed. */
BONSAI_API void bonsai_free(void* data);

/* ---- devices --------------------------------------------------------------------------------- */

typedef struct bonsai_device_info {
    uint32_t struct_size;
    int32_t threads;       /* worker threads that would be used by default; 0 on a GPU */
    uint64_t memory_total; /* bytes; for the CPU within cgroup limits */
    uint64_t memory_free;
    char id[32];       /* what bonsai_open_params.device takes: "cpu", "cuda:0", ... */
    char name[96];     /* the maker's name of it */
    char features[96]; /* instruction set or architecture in use, e.g. "avx2" */
} bonsai_device_info;

BONSAI_API int32_t bonsai_device_count(void);
/* index 0 .. bonsai_device_count() - 1, the preferred device first. */
BONSAI_API bonsai_status bonsai_device_get_info(int32_t index, bonsai_device_info* info);

/* ---- opening a model ------------------------------------------------------------------------- */

typedef struct bonsai_context bonsai_context;

typedef enum bonsai_precision {
    BONSAI_PRECISION_FAST = 0, /* int8 activations with one scale for each token and 128 features */
    BONSAI_PRECISION_EXACT = 1 /* float activations */
} bonsai_precision;

/* Warnings such as "prompt truncated". One line, no newline. Called on the thread that called the
 * library. */
typedef void (*bonsai_log_callback)(const char* line, void* user);

typedef struct bonsai_open_params {
    uint32_t struct_size;
    int32_t threads;   /* 0: physical cores within affinity mask and cgroup quota */
    int32_t precision; /* a bonsai_precision */
    int32_t reserved;
    uint64_t max_memory;     /* bytes the engine should stay below, by giving weights back block by
                                block and by decoding in strips, which take longer; the picture is
                                the same. 0: what the device has free */
    const char* device;      /* NULL or "auto": the first of the device list */
    bonsai_log_callback log; /* NULL: warnings are dropped */
    void* log_user;
} bonsai_open_params;

BONSAI_API void bonsai_open_params_init(bonsai_open_params* params);

/* Maps the file and checks all of its structure; weights are read from disk when first used. params
 * may be NULL. On success *ctx is released with bonsai_close; on failure it is NULL. */
BONSAI_API bonsai_status bonsai_open(const char* path, const bonsai_open_params* params,
                                     bonsai_context** ctx);

/* Cancels what runs or waits on other threads, waits until it has returned and releases everything.
 * Calls that begin after this one are not allowed. In a callback of ctx it returns at once, and the
 * call that runs the callback ends with BONSAI_ERR_CANCELLED and releases ctx. NULL is allowed. */
BONSAI_API void bonsai_close(bonsai_context* ctx);

typedef struct bonsai_model_info {
    uint32_t struct_size;
    int32_t default_width; /* pixels */
    int32_t default_height;
    int32_t default_steps;
    float default_guidance;
    int32_t distilled;     /* 1: guidance is built in, the guidance parameter is ignored */
    int32_t max_tokens;    /* T: rows of an encoded prompt */
    int32_t prompt_width;  /* D: columns of an encoded prompt */
    int32_t size_multiple; /* width and height are multiples of this */
    int32_t tensors;       /* tensors in the file */
    uint64_t file_bytes;
    uint64_t transformer_bytes;
    uint64_t text_encoder_bytes;
    uint64_t vae_bytes;
    uint64_t parameters; /* weights of all stored parts */
    char hash[72]; /* SHA-256 over names, types, shapes and tensor hashes: identifies the weights */
    char variant[16]; /* "ternary", "binary" or "dense" */
    char name[128];
    char license[128];
    char source[256];
    char device[32]; /* id of the device in use */
} bonsai_model_info;

BONSAI_API bonsai_status bonsai_model_get_info(const bonsai_context* ctx, bonsai_model_info* info);

/* ---- drawing --------------------------------------------------------------------------------- */

typedef enum bonsai_stage {
    BONSAI_STAGE_TEXT_ENCODER = 0,
    BONSAI_STAGE_DENOISE = 1,
    BONSAI_STAGE_VAE = 2
} bonsai_stage;

typedef struct bonsai_progress {
    uint32_t struct_size;
    int32_t stage; /* a bonsai_stage */
    int32_t image; /* 0 .. images - 1; of pictures whose steps are taken together, the first */
    int32_t images;
    int32_t step; /* steps finished; 0 outside of DENOISE */
    int32_t steps;
    double fraction;      /* of this stage, 0 to 1 */
    double stage_seconds; /* since this stage of this image began */
    double total_seconds; /* since bonsai_generate was called */
} bonsai_progress;

/* Called on the calling thread, several times a step. Return 0 to go on, anything else to cancel.
 * Calls that compute on the same context answer BONSAI_ERR_ARGUMENT here. */
typedef int32_t (*bonsai_progress_callback)(const bonsai_progress* progress, void* user);

typedef struct bonsai_step {
    uint32_t struct_size;
    int32_t image; /* 0 .. images - 1 */
    int32_t step;  /* 1 .. steps: this many are finished */
    int32_t steps;
    int32_t latent_height; /* tokens: height / 16 */
    int32_t latent_width;
    int32_t latent_channels;
    int32_t width; /* of rgb */
    int32_t height;
    float sigma;          /* noise level reached */
    const float* latents; /* [latent_height, latent_width, latent_channels], normalised */
    const uint8_t* rgb; /* [height, width, 3] what the picture looks like to the model so far; NULL
                           unless preview_every asks for it */
} bonsai_step;

/* Called after each step, once for each picture that took it; the pointers are valid during the
 * call. Return 0 to go on, anything else to cancel. */
typedef int32_t (*bonsai_step_callback)(const bonsai_step* step, void* user);

typedef enum bonsai_dtype {
    BONSAI_DTYPE_F32 = 0,
    BONSAI_DTYPE_F16 = 1,
    BONSAI_DTYPE_BF16 = 2
} bonsai_dtype;

typedef struct bonsai_generate_params {
    uint32_t struct_size;
    int32_t width; /* pixels, a multiple of size_multiple; 0: the file's default (likewise below) */
    int32_t height;
    int32_t steps;
    int32_t images; /* pictures to draw, with seeds seed, seed + 1, ...; default 1. Devices that
                       gain by it take the steps of several together, as memory allows: each picture
                       is the one it would be alone */
    float guidance; /* classifier-free guidance of undistilled models; negative: the file's default;
                       <= 1: none */
    float shift;    /* static timestep shift; 0: the schedule the model declares */
    int32_t noise_dtype;    /* bonsai_dtype the start noise is rounded to, as 16-bit pipelines do;
                               default F32 */
    int32_t timestep_dtype; /* bonsai_dtype the timesteps are rounded to; default F32 */
    int32_t preview_every;  /* decode a preview every so many steps (costs a VAE decode each); 0:
                               never */
    uint64_t seed; /* torch.Generator("cpu").manual_seed(seed) draws the same noise; its low 32 bits
                      count; default 0 */
    const char* prompt;                   /* "" is valid */
    bonsai_progress_callback on_progress; /* may be NULL */
    bonsai_step_callback on_step;         /* may be NULL */
    void* user;                           /* passed to both */
} bonsai_generate_params;

BONSAI_API void bonsai_generate_params_init(bonsai_generate_params* params);

/* This and bonsai_image keep their layout within an ABI version, as arrays of them are passed. */
typedef struct bonsai_stats {
    double text_encoder_seconds;
    double denoise_seconds; /* of pictures drawn together, an equal share each */
    double vae_seconds;
    double total_seconds;
    uint64_t text_encoder_peak; /* highest during the stage: resident bytes of the process, or on a
                                   GPU the engine's bytes on the device; 0: cannot be read */
    uint64_t denoise_peak;
    uint64_t vae_peak;
    uint64_t arena_bytes;     /* activations */
    int32_t prompt_tokens;    /* real tokens, template included */
    int32_t prompt_truncated; /* 1: the prompt was longer than max_tokens */
    int32_t vae_tiled; /* 1: decoded in strips for want of memory: slower, the same picture (on a
                          GPU up to rounding) */
    int32_t reserved;
} bonsai_stats;

typedef struct bonsai_image {
    int32_t width;
    int32_t height;
    uint8_t* rgb; /* [height, width, 3] */
    uint64_t seed;
    char* metadata; /* lines "key: value" that a saved PNG carries: prompt, seed, size, steps, model
                       hash, ... */
    bonsai_stats stats;
} bonsai_image;

/* Draws params->images pictures into images[0 .. n-1], which need not be initialised. On failure
 * all of them are empty. */
BONSAI_API bonsai_status bonsai_generate(bonsai_context* ctx, const bonsai_generate_params* params,
                                         bonsai_image* images);

/* Makes calls that run on ctx end with BONSAI_ERR_CANCELLED: on the processor within the pieces of
 * an operation that its threads have begun, on a GPU within one transformer block.
 * Async-signal-safe, from any thread. */
BONSAI_API void bonsai_cancel(bonsai_context* ctx);

/* Releases what one image holds and empties it. NULL and empty images are allowed. */
BONSAI_API void bonsai_image_free(bonsai_image* image);

/* Writes to a temporary name beside path, then renames: path is either complete or untouched. */
BONSAI_API bonsai_status bonsai_image_save_png(const bonsai_image* image, const char* path);

/* The same bytes in memory; release *data with bonsai_free. */
BONSAI_API bonsai_status bonsai_image_encode_png(const bonsai_image* image, uint8_t** data,
                                                 size_t* size);

/* The metadata lines of a PNG that bonsai wrote; release *metadata with bonsai_free.
 * BONSAI_ERR_FORMAT: it has none. */
BONSAI_API bonsai_status bonsai_png_read_metadata(const char* path, char** metadata);

/* ---- parts of the pipeline ------------------------------------------------------------------- */

/* The template around prompt as token ids, cut to max_tokens, not padded. ids has room for
 * capacity; *count is the full number even when it is larger. */
BONSAI_API bonsai_status bonsai_prompt_tokenize(bonsai_context* ctx, const char* prompt,
                                                int32_t* ids, int32_t capacity, int32_t* count);

/* What the transformer is conditioned on: [max_tokens, prompt_width] floats, padding rows included.
 * count must be max_tokens * prompt_width. */
BONSAI_API bonsai_status bonsai_prompt_encode(bonsai_context* ctx, const char* prompt, float* out,
                                              size_t count);

/* Encodes the prompt, unless it is among the last ones used, and writes what came out to a file.
 * Precision and device of ctx count, as they do in a picture. */
BONSAI_API bonsai_status bonsai_embeds_save(bonsai_context* ctx, const char* prompt,
                                            const char* path);

/* Reads such a file of the same model (its hash is compared): *prompt gets the text, released with
 * bonsai_free, and the pictures of this prompt that ctx draws next need no text encoder. */
BONSAI_API bonsai_status bonsai_embeds_load(bonsai_context* ctx, const char* path, char** prompt);

/* count standard normals, bit for bit those of torch.randn with a CPU generator (x86-64 with AVX2);
 * count >= 16. */
BONSAI_API bonsai_status bonsai_noise(uint64_t seed, float* out, size_t count);

typedef struct bonsai_memory_plan {
    uint32_t struct_size;
    int32_t vae_tiled; /* 1: the VAE must work in strips to stay within limit */
    int32_t fits;      /* 0: would not fit even so */
    int32_t reserved;
    uint64_t text_encoder_weights; /* resident while the stage runs, given back after it */
    uint64_t text_encoder_activations;
    uint64_t transformer_weights;
    uint64_t transformer_activations;
    uint64_t vae_weights;
    uint64_t vae_activations;
    uint64_t peak;  /* of the three stages */
    uint64_t limit; /* max_memory, or what the device has free */
} bonsai_memory_plan;

/* What a picture of this size will take; width or height 0: the file's default. */
BONSAI_API bonsai_status bonsai_plan_memory(bonsai_context* ctx, int32_t width, int32_t height,
                                            bonsai_memory_plan* plan);

/* The same for one picture of a request, whose steps and guidance count too. Its prompt may be
 * NULL; callbacks are not called. */
BONSAI_API bonsai_status bonsai_plan_request(bonsai_context* ctx,
                                             const bonsai_generate_params* params,
                                             bonsai_memory_plan* plan);

/* ---- self-test ------------------------------------------------------------------------------- */

/* Whether this machine computes rightly: every operation, in every weight type and precision, runs
 * on params->device (threads counts too, the rest of params does not; NULL: the preferred device)
 * with inputs whose results are known, and one tiny picture is drawn from a built-in model. Takes
 * about a second. *report lists processor, memory, devices and each check with its error and time,
 * as text or as JSON; release it with bonsai_free. *failures is the number of checks that failed:
 * BONSAI_OK means that they were run. Either pointer may be NULL. */
BONSAI_API bonsai_status bonsai_self_test(const bonsai_open_params* params, int32_t json,
                                          char** report, int32_t* failures);

/* ---- model files ----------------------------------------------------------------------------- */

/* Describes any GGUF file, ours or not, as text or as JSON; release *text with bonsai_free. */
BONSAI_API bonsai_status bonsai_file_describe(const char* path, int32_t json, char** text);

/* fraction 0 to 1 of the bytes; return 0 to go on. */
typedef int32_t (*bonsai_verify_callback)(double fraction, const char* tensor, void* user);

/* Compares every tensor with its SHA-256 in the file. BONSAI_ERR_FORMAT names the first that
 * differs. */
BONSAI_API bonsai_status bonsai_file_verify(const char* path, bonsai_verify_callback callback,
                                            void* user);

/* cdef end */

#ifdef __cplusplus
}
#endif

#endif /* BONSAI_H */
