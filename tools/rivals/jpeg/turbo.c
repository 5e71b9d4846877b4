/* libjpeg-turbo decoding photographs from memory, in one thread: CPU milliseconds a photograph. measure.py builds and calls this.
 *
 * In: standard input holds the photographs, each a 32-bit little-endian length and its bytes; argv: file of boxes, rounds, passes.
 * Out: JSON lines. A round takes each work once, in turn, so that what drifts on the machine meets all alike; within it a work makes
 * some passes over all photographs, and its figure is their median. The last lines are medians over the rounds.
 * The works: the whole photograph, and the bounding box of its boxes (jpeg_crop_scanline, jpeg_skip_scanlines, stop after the last
 * row), each to 3 and to 4 bytes a pixel. DCT and upsampling are the library's defaults, islow and fancy.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jpeglib.h>

#define TEXT(x) #x
#define NAME(x) TEXT(x)
#ifdef LIBJPEG_TURBO_VERSION
#define VERSION NAME(LIBJPEG_TURBO_VERSION)
#else
#define VERSION "not libjpeg-turbo"
#endif

typedef struct {
    const unsigned char *bytes;
    unsigned long length;
    int width, height;
    int left, top, right, bottom; /* right and bottom are the first beyond; right is 0 without a box */
} Photo;

typedef struct {
    const char *name;
    J_COLOR_SPACE colours;
    int bytes_per_pixel, boxed;
} Work;

static const Work WORKS[] = {
    {"full-rgb", JCS_RGB, 3, 0},
    {"full-rgbx", JCS_EXT_RGBX, 4, 0},
    {"box-rgb", JCS_RGB, 3, 1},
    {"box-rgbx", JCS_EXT_RGBX, 4, 1},
};
enum { COUNT = sizeof WORKS / sizeof *WORKS };

/* ---- the library ---- */

static jmp_buf failed;
static struct jpeg_error_mgr errors;
static struct jpeg_decompress_struct decoder;

static void on_error(j_common_ptr info) {
    info->err->output_message(info);
    longjmp(failed, 1);
}

/* Reads `rows` rows of `stride` bytes into `out`. */
static void read_rows(unsigned char *out, size_t stride, int rows) {
    JSAMPROW lines[16];
    for (int done = 0; done < rows;) {
        int want = rows - done < 16 ? rows - done : 16;
        for (int i = 0; i < want; i++)
            lines[i] = out + stride * (done + i);
        done += jpeg_read_scanlines(&decoder, lines, want);
    }
}

/* Decodes all of a photograph or its box into `out`. The box's row starts at the MCU that holds its left side: returns how many
 * pixels before it. `*stride`: bytes a row. */
static int decode(const Photo *photo, const Work *work, unsigned char *out, size_t *stride) {
    jpeg_mem_src(&decoder, photo->bytes, photo->length);
    jpeg_read_header(&decoder, TRUE);
    decoder.out_color_space = work->colours;
    jpeg_start_decompress(&decoder);
    if (!work->boxed) {
        *stride = (size_t)decoder.output_width * work->bytes_per_pixel;
        read_rows(out, *stride, decoder.output_height);
        jpeg_finish_decompress(&decoder);
        return 0;
    }
    JDIMENSION left = photo->left, width = photo->right - photo->left;
    jpeg_crop_scanline(&decoder, &left, &width);
    *stride = (size_t)decoder.output_width * work->bytes_per_pixel;
    if (photo->top > 0)
        jpeg_skip_scanlines(&decoder, photo->top);
    read_rows(out, *stride, photo->bottom - photo->top);
    jpeg_abort_decompress(&decoder);
    return photo->left - (int)left;
}

/* ---- input ---- */

static void *need(void *memory) {
    if (!memory) {
        fputs("no memory\n", stderr);
        exit(1);
    }
    return memory;
}

static unsigned char *read_all(FILE *file, size_t *length) {
    size_t room = 1 << 20;
    unsigned char *bytes = need(malloc(room));
    *length = 0;
    for (size_t got; (got = fread(bytes + *length, 1, room - *length, file)) > 0;) {
        *length += got;
        if (*length == room)
            bytes = need(realloc(bytes, room *= 2));
    }
    return bytes;
}

static int split(const unsigned char *bytes, size_t length, Photo **photos) {
    int count = 0;
    *photos = NULL;
    for (size_t at = 0; at + 4 <= length; count++) {
        const unsigned char *p = bytes + at;
        uint32_t size = p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
        *photos = need(realloc(*photos, (count + 1) * sizeof **photos));
        (*photos)[count] = (Photo){.bytes = p + 4, .length = size};
        at += 4 + (size_t)size;
    }
    return count;
}

/* Lines `index left top width height`: a photograph's box is the smallest around all of its own. */
static void read_boxes(const char *path, Photo *photos, int count) {
    FILE *file = fopen(path, "r");
    int index, left, top, width, height;
    if (!file) {
        perror(path);
        exit(1);
    }
    while (fscanf(file, "%d %d %d %d %d", &index, &left, &top, &width, &height) == 5) {
        if (index < 0 || index >= count || width < 1 || height < 1)
            continue;
        Photo *p = photos + index;
        int right = left + width, bottom = top + height, first = p->right == 0;
        p->left = first || left < p->left ? left : p->left;
        p->top = first || top < p->top ? top : p->top;
        p->right = right > p->right ? right : p->right;
        p->bottom = bottom > p->bottom ? bottom : p->bottom;
    }
    fclose(file);
}

/* ---- the figures ---- */

static double cpu_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e3 * now.tv_sec + 1e-6 * now.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, count, sizeof *values, by_value);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

/* Keeps the photographs that the library decodes and that have a box within them, and learns their sizes. */
static int keep_decodable(Photo *photos, int count, size_t *pixels) {
    int kept = 0;
    *pixels = 0;
    for (int i = 0; i < count; i++) {
        Photo p = photos[i];
        if (setjmp(failed)) {
            jpeg_abort_decompress(&decoder);
            continue;
        }
        jpeg_mem_src(&decoder, p.bytes, p.length);
        jpeg_read_header(&decoder, TRUE);
        p.width = decoder.image_width;
        p.height = decoder.image_height;
        int usable = decoder.num_components < 4;
        jpeg_abort_decompress(&decoder);
        if (!usable || p.right == 0 || p.left < 0 || p.top < 0 || p.right > p.width || p.bottom > p.height)
            continue;
        if ((size_t)p.width * p.height > *pixels)
            *pixels = (size_t)p.width * p.height;
        photos[kept++] = p;
    }
    return kept;
}

/* What the boxes ask for, and how far their pixels are from the same ones of whole photographs. */
static void describe(const Photo *photos, int count, unsigned char *whole, unsigned char *part) {
    double pixels = 0, rows = 0, area = 0, differing = 0;
    int most = 0;
    for (int i = 0; i < count; i++) {
        const Photo *p = photos + i;
        size_t stride, narrow;
        decode(p, &WORKS[0], whole, &stride);
        int skip = decode(p, &WORKS[2], part, &narrow);
        for (int y = p->top; y < p->bottom; y++) {
            const unsigned char *a = whole + stride * y + 3 * p->left, *b = part + narrow * (y - p->top) + 3 * skip;
            for (int x = 0; x < 3 * (p->right - p->left); x++) {
                int apart = abs(a[x] - b[x]);
                differing += apart > 0;
                most = apart > most ? apart : most;
            }
        }
        pixels += (double)p->width * p->height;
        rows += (double)p->width * p->bottom;
        area += (double)(p->right - p->left) * (p->bottom - p->top);
    }
    printf("{\"what\": \"library\", \"libjpeg-turbo\": \"%s\", \"api\": %d}\n", VERSION, JPEG_LIB_VERSION);
    printf("{\"what\": \"photographs\", \"count\": %d, \"megapixels\": %.4f}\n", count, pixels / count / 1e6);
    printf("{\"what\": \"boxes\", \"rows_to_bottom\": %.4f, \"area\": %.4f, \"differing_values\": %.2e, \"largest_difference\": %d}\n",
           rows / pixels, area / pixels, differing / (3 * area), most);
}

static double measure(const Photo *photos, int count, const Work *work, int passes, unsigned char *out) {
    double *ms = need(malloc(passes * sizeof *ms));
    for (int pass = 0; pass < passes; pass++) {
        double start = cpu_ms();
        size_t stride;
        for (int i = 0; i < count; i++)
            decode(photos + i, work, out, &stride);
        ms[pass] = (cpu_ms() - start) / count;
    }
    double middle = median(ms, passes);
    free(ms);
    return middle;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fputs("usage: turbo BOXES ROUNDS PASSES < PHOTOGRAPHS\n", stderr);
        return 2;
    }
    int rounds = atoi(argv[2]), passes = atoi(argv[3]);
    size_t length, pixels;
    unsigned char *bytes = read_all(stdin, &length);
    Photo *photos;
    int given = split(bytes, length, &photos);
    read_boxes(argv[1], photos, given);

    decoder.err = jpeg_std_error(&errors);
    errors.error_exit = on_error;
    jpeg_create_decompress(&decoder);
    int count = keep_decodable(photos, given, &pixels);
    if (count < given)
        fprintf(stderr, "%d of %d left out: not decodable, or without a box\n", given - count, given);
    if (count < 1 || rounds < 1 || passes < 1)
        return 1;
    unsigned char *out = need(malloc(4 * pixels)), *other = need(malloc(4 * pixels));
    double *figures = need(malloc(COUNT * rounds * sizeof *figures));
    if (setjmp(failed)) {
        fputs("a photograph failed after its header\n", stderr);
        return 1;
    }
    describe(photos, count, out, other);
    for (int round = 0; round < rounds; round++)
        for (int w = 0; w < COUNT; w++) {
            double ms = figures[w * rounds + round] = measure(photos, count, &WORKS[w], passes, out);
            printf("{\"what\": \"%s\", \"round\": %d, \"ms\": %.4f}\n", WORKS[w].name, round + 1, ms);
            fflush(stdout);
        }
    for (int w = 0; w < COUNT; w++) {
        double middle = median(figures + w * rounds, rounds), *sorted = figures + w * rounds;
        printf("{\"what\": \"%s\", \"ms\": %.4f, \"least\": %.4f, \"most\": %.4f}\n", WORKS[w].name, middle, sorted[0],
               sorted[rounds - 1]);
    }
    return 0;
}
