/* A stand-in for libnvidia-ml.so.1, for machines without a GPU: known power curves behind the calls that pynvml makes.

   Curves, stamps and UUIDs are pure functions of (node, index, time); curves.py is their Python twin. All faults are
   chosen by environment variables, read at each call:

   FAKE_NVML_GPUS=2                    how many GPUs
   FAKE_NVML_CURVE=kind[:base_w[:swing_w[:period_s]]]     ramp (the default), square, constant, or load: base_w, and
                                       swing_w more while a load is on
   FAKE_NVML_LOAD=folder               when each load is on: a file a UUID with unix ns, 8 bytes each: on, off, on ...
   FAKE_NVML_BUFFER=lag_ms:window_ms   a buffer sample is the mean over window_ms that ended lag_ms before its stamp
   FAKE_NVML_INSTANT=lag_ms:window_ms  the same of field 186 at its renewals
   FAKE_NVML_DEPTH=119                 how many samples the buffer keeps
   FAKE_NVML_GPM_MS=100                how often GPM's counters are renewed; metrics in between are NaN
   FAKE_NVML_NOISE_W=2                 by how much samples and fields are off at most
   FAKE_NVML_JITTER_US=6000            how irregular the buffer's stamps are
   FAKE_NVML_NAME=A,B                  names by index; the last one serves the rest
   FAKE_NVML_DRIVER=580.00
   FAKE_NVML_MISSING=call,186,...      calls and fields that are not supported
   FAKE_NVML_DENY=call,...             calls and fields without permission
   FAKE_NVML_LATENCY_US=call=3000,...  how long calls take
   FAKE_NVML_LOST=index@unix_s[-unix_s]   a GPU that is lost from then on, or until
   FAKE_NVML_LOST=index@/path          a GPU that is lost while there is such a file
   FAKE_NVML_COUNTER_RESET=unix_s      when the energy counter starts again at 0
   FAKE_NVML_MIG=1                     MIG mode is on
   FAKE_NVML_ARCHITECTURE=9            9 is Hopper, 7 Ampere, 5 Volta
   FAKE_NVML_PROCESSES=1               with a compute context, on each GPU
   FAKE_NVML_PIDS=file                 the pids of those processes instead, read from a file at each call;
                                       pid@index for one on that GPU alone
   FAKE_NVML_STATE=folder              power limits and locked clocks outlive a process here, a file a UUID:
                                       "limit_mw clock_mhz", 0 for clocks that are not locked
   FAKE_NVML_LEAST_W=300               a lower limit is taken for this one without a word
   FAKE_NVML_REASONS=4                 NVML's clock-event bits
   FAKE_NVML_PROFILES=0x88             the workload power profiles in force, as bits (3 and 7); without it there are none
   FAKE_NVML_MODULE_W=80               superchips: fields 185 and 186 of scope 1 are so many watts more, of which the energy
                                       counter has its part; without it a field of another scope than 0 is not supported
   FAKE_NVML_COUNTER_SCOPES=1          field 83 counts what its scope says, and not always the module
   FAKE_NVML_SCOPES=ignored            the driver answers each scope alike, with power of the module; or =0, with its own
                                       scope 0 in each answer
   FAKE_NVML_SOCKETS=0,0,1             the NUMA node beside each GPU by index; else each has one of its own
   FAKE_NVML_UNDER_CAP=1               the share of time since the epoch that the power cap took
*/

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
};

enum { VALUE_DOUBLE = 0, VALUE_UINT = 1, VALUE_ULL = 3 };

#define MOST_GPUS 32
#define SECOND_NS 1000000000LL
#define TICK_NS 100000000LL     /* counter, instant and average power are renewed each 100 ms */
#define STEP_US 20000LL         /* the buffer takes a sample each 20 ms ... */
#define LAG_US 15000LL          /* ... and shows it 15 ms later */
#define DEFAULT_LIMIT_MW 700000
#define LEAST_LIMIT_MW 200000
#define MOST_CLOCK_MHZ 1980
#define DRIVER_LOADED_NS (1600000000LL * SECOND_NS)

typedef struct { unsigned index; } Gpu;
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; } Value;
typedef struct { unsigned long long time_us; Value value; } Sample;
typedef struct {
    unsigned field, scope;
    long long time_us, latency_us;
    unsigned type, result;
    Value value;
} FieldValue;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, supported; } GpmSupport;
typedef struct { unsigned version, available[8], requested[8], enforced[8]; } Profiles;

static Gpu gpus[MOST_GPUS];
static int users;

/* ---- the environment ---- */

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static unsigned gpu_count(void) {
    int count = atoi(setting("FAKE_NVML_GPUS", "2"));
    return count < 0 ? 0 : count > MOST_GPUS ? MOST_GPUS : (unsigned)count;
}

/* Where `word` stands in a comma-separated list: the text after it (its "=value", or ""), or NULL. */
static const char *listed(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list; *at;) {
        size_t span = strcspn(at, ",");
        if (span >= length && !strncmp(at, word, length) && (span == length || at[length] == '='))
            return at + length;
        at += span + (at[span] == ',');
    }
    return NULL;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * SECOND_NS + now.tv_nsec;
}

static int is_lost(unsigned index) {
    const char *at = setting("FAKE_NVML_LOST", "");
    double now_s = (double)now_ns() / 1e9;
    while (*at) {
        char *rest;
        unsigned long which = strtoul(at, &rest, 10);
        if (*rest != '@')
            return 0;
        if (rest[1] == '/')
            return which == index && !access(rest + 1, F_OK);
        double from_s = strtod(rest + 1, &rest), until_s = INFINITY;
        if (*rest == '-')
            until_s = strtod(rest + 1, &rest);
        if (which == index && now_s >= from_s && now_s < until_s)
            return 1;
        at = *rest == ',' ? rest + 1 : rest;
    }
    return 0;
}

/* What each call does first: it takes its time, then fails if it was told to. */
static int enter(const char *call, const Gpu *gpu) {
    const char *latency = listed(setting("FAKE_NVML_LATENCY_US", ""), call);
    if (latency && *latency == '=')
        usleep((useconds_t)atoi(latency + 1));
    if (listed(setting("FAKE_NVML_DENY", ""), call))
        return NO_PERMISSION;
    if (listed(setting("FAKE_NVML_MISSING", ""), call))
        return NOT_SUPPORTED;
    if (!users)
        return UNINITIALIZED;
    if (gpu && is_lost(gpu->index))
        return GPU_IS_LOST;
    return SUCCESS;
}

#define ENTER(gpu)                                                                                                     \
    do {                                                                                                               \
        int result = enter(__func__, (gpu));                                                                           \
        if (result)                                                                                                    \
            return result;                                                                                             \
    } while (0)

/* ---- who a GPU is, and its watts ---- */

static uint64_t hash_text(const char *text) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3ULL;
    return hash;
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static void uuid_of(unsigned index, char out[41]) {
    char host[256] = "", who[300];
    const char *node = setting("SLURMD_NODENAME", NULL);
    if (!node) {
        gethostname(host, sizeof host - 1);
        node = host;
    }
    snprintf(who, sizeof who, "%.255s/%u", node, index);
    uint64_t high = mix(hash_text(who)), low = mix(high);
    snprintf(out, 41, "GPU-%08x-%04x-%04x-%04x-%012llx", (unsigned)(high >> 32), (unsigned)(high >> 16) & 0xffff,
             (unsigned)high & 0xffff, (unsigned)(low >> 48), (unsigned long long)low & 0xffffffffffffULL);
}

typedef struct { char kind; double base_w, swing_w; int64_t period_ns; unsigned index; } Curve;

/* The edges of a GPU's load as far as its file was read, and for how long it was on before each. */
typedef struct { int64_t *edges_ns, *on_ns; size_t count; } Load;

static Load loads[MOST_GPUS];
static pthread_mutex_t reading_loads = PTHREAD_MUTEX_INITIALIZER;

static void read_load(unsigned index) {
    char path[512], uuid[41];
    Load *load = &loads[index];
    uuid_of(index, uuid);
    snprintf(path, sizeof path, "%s/%s", setting("FAKE_NVML_LOAD", "."), uuid);
    FILE *file = fopen(path, "rb");
    int64_t edge_ns;
    if (!file)
        return;
    fseek(file, (long)(load->count * sizeof edge_ns), SEEK_SET);
    while (fread(&edge_ns, sizeof edge_ns, 1, file) == 1) {
        size_t k = load->count++;
        load->edges_ns = realloc(load->edges_ns, load->count * sizeof edge_ns);
        load->on_ns = realloc(load->on_ns, load->count * sizeof edge_ns);
        load->edges_ns[k] = edge_ns;
        load->on_ns[k] = k ? load->on_ns[k - 1] + (k % 2 ? edge_ns - load->edges_ns[k - 1] : 0) : 0;
    }
    fclose(file);
}

/* For how long the load was on until a time; `is_on` then says whether it is on at that time. */
static int64_t loaded_ns(unsigned index, int64_t time_ns, int *is_on) {
    pthread_mutex_lock(&reading_loads);
    read_load(index);
    const Load *load = &loads[index];
    size_t low = 0, high = load->count; /* the number of edges up to the time */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (load->edges_ns[middle] <= time_ns)
            low = middle + 1;
        else
            high = middle;
    }
    *is_on = low % 2 == 1;
    int64_t on_ns = low ? load->on_ns[low - 1] + (*is_on ? time_ns - load->edges_ns[low - 1] : 0) : 0;
    pthread_mutex_unlock(&reading_loads);
    return on_ns;
}

static Curve curve_of(unsigned index) {
    char uuid[41];
    uuid_of(index, uuid);
    uint64_t hash = mix(hash_text(uuid));
    Curve curve = {
        'r',
        60.0 + (double)(hash & 0xff) * 0.5,
        40.0 + (double)((hash >> 8) & 0xff) * 0.5,
        2 * SECOND_NS + (int64_t)((hash >> 16) & 7) * 4 * TICK_NS,
        index,
    };
    const char *text = setting("FAKE_NVML_CURVE", "ramp");
    curve.kind = *text;
    if ((text = strchr(text, ':')))
        curve.base_w = atof(++text);
    if (text && (text = strchr(text, ':')))
        curve.swing_w = atof(++text);
    if (text && (text = strchr(text, ':')))
        curve.period_ns = (int64_t)llround(atof(++text) * 1e9);
    return curve;
}

static double watts(Curve c, int64_t time_ns) {
    double phase = (double)(time_ns % c.period_ns) / (double)c.period_ns;
    int is_on;
    if (c.kind == 'c')
        return c.base_w;
    if (c.kind == 'l') {
        loaded_ns(c.index, time_ns, &is_on);
        return c.base_w + (is_on ? c.swing_w : 0.0);
    }
    if (c.kind == 's')
        return c.base_w + (phase < 0.5 ? c.swing_w : 0.0);
    return c.base_w + c.swing_w * (1.0 - fabs(2.0 * phase - 1.0)); /* up for half a period, then down */
}

/* Joules of the part above base_w from a period's start to the time, whole periods left out. */
static double swing_j(Curve c, int64_t time_ns) {
    double period_s = (double)c.period_ns / 1e9, x = (double)(time_ns % c.period_ns) / 1e9;
    if (c.kind == 'c')
        return 0.0;
    if (c.kind == 's')
        return c.swing_w * fmin(x, period_s / 2);
    return c.swing_w * (x <= period_s / 2 ? x * x / period_s : period_s / 2 - (period_s - x) * (period_s - x) / period_s);
}

static double joules(Curve c, int64_t start_ns, int64_t end_ns) {
    int is_on;
    if (c.kind == 'l') {
        int64_t on_ns = loaded_ns(c.index, end_ns, &is_on) - loaded_ns(c.index, start_ns, &is_on);
        return (c.base_w * (double)(end_ns - start_ns) + c.swing_w * (double)on_ns) / 1e9;
    }
    double periods = (double)(end_ns / c.period_ns - start_ns / c.period_ns);
    double whole = c.kind == 'c' ? 0.0 : periods * c.swing_w * (double)c.period_ns / 2e9;
    return c.base_w * ((double)(end_ns - start_ns) / 1e9) + whole + swing_j(c, end_ns) - swing_j(c, start_ns);
}

static int64_t tick(int64_t time_ns) { return time_ns - time_ns % TICK_NS; }

/* Watts by a sensor that averages; `sensor` is the setting with its lag_ms:window_ms, `draw` numbers its samples. */
static double sensed_w(unsigned index, const char *sensor, int64_t time_ns, int64_t draw) {
    const char *text = setting(sensor, "0:0"), *colon = strchr(text, ':');
    int64_t end_ns = time_ns - (int64_t)llround(atof(text) * 1e6);
    int64_t window_ns = colon ? (int64_t)llround(atof(colon + 1) * 1e6) : 0;
    Curve c = curve_of(index);
    double off = (double)(mix((uint64_t)draw * 64 + index) >> 11) / (double)(1ULL << 52) - 1.0;
    double true_w = window_ns ? joules(c, end_ns - window_ns, end_ns) / ((double)window_ns / 1e9) : watts(c, end_ns);
    return fmax(0.0, true_w + off * atof(setting("FAKE_NVML_NOISE_W", "0")));
}

static double module_w(void) { return atof(setting("FAKE_NVML_MODULE_W", "0")); }

static unsigned mean_mw(unsigned index) { /* over the last second, as PowerUsage of Hopper */
    int64_t end = tick(now_ns());
    double off = (double)(mix((uint64_t)end * 64 + index) >> 11) / (double)(1ULL << 52) - 1.0;
    return (unsigned)lround((joules(curve_of(index), end - SECOND_NS, end) +
                             off * atof(setting("FAKE_NVML_NOISE_W", "0"))) * 1e3);
}

static unsigned instant_mw(unsigned index) {
    int64_t at = tick(now_ns());
    return (unsigned)lround(sensed_w(index, "FAKE_NVML_INSTANT", at, at) * 1e3);
}

static unsigned long long counter_mj(unsigned index, double more_w) {
    int64_t end = tick(now_ns()), start = DRIVER_LOADED_NS;
    int64_t reset = (int64_t)(atof(setting("FAKE_NVML_COUNTER_RESET", "0")) * 1e9);
    if (reset && end >= reset)
        start = reset;
    return (unsigned long long)llround((joules(curve_of(index), start, end) + more_w * (double)(end - start) / 1e9) * 1e3);
}

static int64_t stamp_us(int64_t k) {
    int64_t jitter = atoi(setting("FAKE_NVML_JITTER_US", "6000"));
    return k * STEP_US + (int64_t)(mix((uint64_t)k) % (uint64_t)(jitter + 1));
}

/* ---- the library ---- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    users++;
    int result = enter(__func__, NULL);
    if (result)
        users--;
    for (unsigned i = 0; i < MOST_GPUS; i++)
        gpus[i].index = i;
    return result;
}

int nvmlShutdown(void) {
    ENTER(NULL);
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER(NULL);
    snprintf(out, size, "%s", setting("FAKE_NVML_DRIVER", "580.00"));
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    *count = gpu_count();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) {
    if (index >= gpu_count())
        return INVALID_ARGUMENT;
    ENTER(&gpus[index]);
    *gpu = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **gpu) {
    for (unsigned i = 0; i < gpu_count(); i++) {
        char own[41];
        uuid_of(i, own);
        if (!strcmp(own, uuid)) {
            ENTER(&gpus[i]);
            *gpu = &gpus[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(Gpu *gpu, unsigned *index) {
    ENTER(gpu);
    *index = gpu->index;
    return SUCCESS;
}

int nvmlDeviceGetUUID(Gpu *gpu, char *out, unsigned size) {
    ENTER(gpu);
    if (size < 41)
        return INSUFFICIENT_SIZE;
    uuid_of(gpu->index, out);
    return SUCCESS;
}

int nvmlDeviceGetName(Gpu *gpu, char *out, unsigned size) {
    ENTER(gpu);
    const char *names = setting("FAKE_NVML_NAME", "NVIDIA Fake 80GB");
    for (unsigned i = 0; i < gpu->index && strchr(names, ','); i++)
        names = strchr(names, ',') + 1;
    snprintf(out, size, "%.*s", (int)strcspn(names, ","), names);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, PciInfo *info) {
    ENTER(gpu);
    memset(info, 0, sizeof *info);
    info->bus = 0x10 + gpu->index;
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "0000:%02X:00.0", info->bus & 0xff);
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus & 0xff);
    return SUCCESS;
}

int nvmlDeviceGetSamples(Gpu *gpu, unsigned kind, unsigned long long last_us, unsigned *type, unsigned *count,
                         Sample *samples) {
    ENTER(gpu);
    if (kind != 0) /* only NVML_TOTAL_POWER_SAMPLES */
        return NOT_SUPPORTED;
    int64_t seen_us = now_ns() / 1000 - LAG_US, newest = seen_us / STEP_US;
    while (stamp_us(newest) > seen_us)
        newest--;
    unsigned depth = (unsigned)atoi(setting("FAKE_NVML_DEPTH", "119"));
    int64_t first = newest - depth + 1;
    while (first <= newest && (uint64_t)stamp_us(first) <= last_us)
        first++;
    if (first > newest)
        return NOT_FOUND;
    *type = VALUE_UINT;
    if (!samples) {
        *count = depth;
        return SUCCESS;
    }
    if (*count < depth)
        return INSUFFICIENT_SIZE;
    *count = (unsigned)(newest - first + 1);
    for (unsigned i = 0; i < *count; i++) {
        int64_t time_us = stamp_us(first + i);
        samples[i].time_us = (unsigned long long)time_us;
        samples[i].value.ull = 0;
        samples[i].value.ui = (unsigned)lround(sensed_w(gpu->index, "FAKE_NVML_BUFFER", time_us * 1000, first + i) * 1e3);
    }
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *milliwatts) {
    ENTER(gpu);
    *milliwatts = mean_mw(gpu->index);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *millijoules) {
    ENTER(gpu);
    *millijoules = counter_mj(gpu->index, module_w());
    return SUCCESS;
}

static unsigned long long under_cap_ns(void) {
    const char *share = setting("FAKE_NVML_UNDER_CAP", "");
    return *share ? (unsigned long long)((double)now_ns() * atof(share)) : 5000000000ULL;
}

/* ---- what is set on a GPU ---- */

typedef struct { unsigned limit_mw, clock_mhz; } Set;

static Set set_in_process[MOST_GPUS];

static const char *state_path(unsigned index, char path[512]) {
    char uuid[41];
    const char *folder = setting("FAKE_NVML_STATE", "");
    uuid_of(index, uuid);
    snprintf(path, 512, "%s/%s", folder, uuid);
    return *folder ? path : NULL;
}

static Set set_of(unsigned index) {
    char path[512];
    const char *kept = state_path(index, path);
    Set found = kept ? (Set){0, 0} : set_in_process[index];
    FILE *file = kept ? fopen(kept, "r") : NULL;
    if (file) {
        if (fscanf(file, "%u %u", &found.limit_mw, &found.clock_mhz) != 2)
            found = (Set){0, 0};
        fclose(file);
    }
    if (!found.limit_mw)
        found.limit_mw = DEFAULT_LIMIT_MW;
    return found;
}

static int keep_set(unsigned index, Set wanted) {
    char path[512], fresh[530];
    set_in_process[index] = wanted;
    if (!state_path(index, path))
        return SUCCESS;
    snprintf(fresh, sizeof fresh, "%s.%d", path, (int)getpid());
    FILE *file = fopen(fresh, "w");
    if (!file)
        return NO_PERMISSION;
    fprintf(file, "%u %u\n", wanted.limit_mw, wanted.clock_mhz);
    fclose(file);
    return rename(fresh, path) ? NO_PERMISSION : SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(Gpu *gpu, unsigned *milliwatts) {
    ENTER(gpu);
    *milliwatts = set_of(gpu->index).limit_mw;
    return SUCCESS;
}

int nvmlDeviceSetPowerManagementLimit(Gpu *gpu, unsigned milliwatts) {
    ENTER(gpu);
    if (milliwatts < LEAST_LIMIT_MW || milliwatts > DEFAULT_LIMIT_MW)
        return INVALID_ARGUMENT;
    unsigned least_mw = 1000 * (unsigned)atoi(setting("FAKE_NVML_LEAST_W", "0"));
    Set wanted = set_of(gpu->index);
    wanted.limit_mw = milliwatts < least_mw ? least_mw : milliwatts;
    return keep_set(gpu->index, wanted);
}

int nvmlDeviceSetGpuLockedClocks(Gpu *gpu, unsigned least_mhz, unsigned most_mhz) {
    ENTER(gpu);
    if (least_mhz > most_mhz || least_mhz < 210 || most_mhz > MOST_CLOCK_MHZ)
        return INVALID_ARGUMENT;
    Set wanted = set_of(gpu->index);
    wanted.clock_mhz = most_mhz;
    return keep_set(gpu->index, wanted);
}

int nvmlDeviceResetGpuLockedClocks(Gpu *gpu) {
    ENTER(gpu);
    Set wanted = set_of(gpu->index);
    wanted.clock_mhz = 0;
    return keep_set(gpu->index, wanted);
}

int nvmlDeviceGetMaxClockInfo(Gpu *gpu, unsigned kind, unsigned *megahertz) {
    ENTER(gpu);
    if (kind > 3)
        return INVALID_ARGUMENT;
    *megahertz = kind == 2 ? 2619 : MOST_CLOCK_MHZ;
    return SUCCESS;
}

static unsigned read_field(unsigned index, FieldValue *f) {
    char name[16];
    snprintf(name, sizeof name, "%u", f->field);
    int result = enter(name, NULL);
    if (result)
        return (unsigned)result;
    const char *known = setting("FAKE_NVML_SCOPES", "");
    int ignored = !strcmp(known, "ignored");
    double more_w = ignored || f->scope == 1 ? module_w() : 0.0;
    if (f->scope > 1 || (f->scope == 1 && !ignored && !module_w()))
        return NOT_SUPPORTED;
    if (!strcmp(known, "0"))
        f->scope = 0;
    f->type = VALUE_UINT;
    f->value.ull = 0;
    switch (f->field) {
    case 186: f->value.ui = instant_mw(index) + (unsigned)lround(more_w * 1e3); break;
    case 185: f->value.ui = mean_mw(index) + (unsigned)lround(more_w * 1e3); break;
    case 187: f->value.ui = LEAST_LIMIT_MW; break;
    case 188: case 189: f->value.ui = DEFAULT_LIMIT_MW; break;
    case 190: case 192: f->value.ui = set_of(index).limit_mw; break;
    case 83:
        f->type = VALUE_ULL;
        f->value.ull = counter_mj(index, *setting("FAKE_NVML_COUNTER_SCOPES", "") ? more_w : module_w());
        break;
    case 74: f->type = VALUE_ULL; f->value.ull = under_cap_ns(); break;
    default: return NOT_SUPPORTED;
    }
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(Gpu *gpu, int count, FieldValue *values) {
    ENTER(gpu);
    for (int i = 0; i < count; i++) {
        values[i].time_us = now_ns() / 1000;
        values[i].latency_us = 1;
        values[i].result = read_field(gpu->index, &values[i]);
    }
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(Gpu *gpu, unsigned words, unsigned long long *nodes, unsigned scope) {
    ENTER(gpu);
    const char *given = setting("FAKE_NVML_SOCKETS", "");
    unsigned node = gpu->index;
    for (unsigned i = 0; *given; i++) {
        if (i == gpu->index)
            node = (unsigned)atoi(given);
        given += strcspn(given, ",");
        given += *given == ',';
    }
    if (scope != 1 || node / 64 >= words)
        return INVALID_ARGUMENT;
    memset(nodes, 0, words * sizeof *nodes);
    nodes[node / 64] = 1ULL << node % 64;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Gpu *gpu, unsigned kind, unsigned *megahertz) {
    ENTER(gpu);
    if (kind > 3)
        return INVALID_ARGUMENT;
    unsigned locked_mhz = set_of(gpu->index).clock_mhz;
    *megahertz = kind == 2 ? 2619 : locked_mhz ? locked_mhz : MOST_CLOCK_MHZ;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Gpu *gpu, unsigned sensor, unsigned *celsius) {
    ENTER(gpu);
    if (sensor != 0)
        return INVALID_ARGUMENT;
    *celsius = 40 + gpu->index;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *rates) {
    ENTER(gpu);
    Curve curve = curve_of(gpu->index);
    int is_on = 1;
    if (curve.kind == 'l')
        loaded_ns(gpu->index, now_ns(), &is_on);
    rates->gpu = is_on ? 90 : 0;
    rates->memory = is_on ? 35 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    ENTER(gpu);
    memory->total = 80ULL << 30;
    memory->used = 16ULL << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(Gpu *gpu, unsigned long long *reasons) {
    ENTER(gpu);
    *reasons = strtoull(setting("FAKE_NVML_REASONS", "4"), NULL, 0); /* 4: the software power cap */
    return SUCCESS;
}

int nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(Gpu *gpu, Profiles *profiles) {
    ENTER(gpu);
    const char *bits = setting("FAKE_NVML_PROFILES", "");
    if (!*bits)
        return NOT_SUPPORTED;
    if (profiles->version != ((unsigned)sizeof *profiles | 1u << 24))
        return INVALID_ARGUMENT;
    profiles->enforced[0] = (unsigned)strtoul(bits, NULL, 0);
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *milliwatts) {
    ENTER(gpu);
    *milliwatts = set_of(gpu->index).limit_mw;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *gpu, unsigned *least_mw, unsigned *most_mw) {
    ENTER(gpu);
    *least_mw = LEAST_LIMIT_MW;
    *most_mw = DEFAULT_LIMIT_MW;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementDefaultLimit(Gpu *gpu, unsigned *milliwatts) {
    ENTER(gpu);
    *milliwatts = DEFAULT_LIMIT_MW;
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(Gpu *gpu, unsigned *mode) {
    ENTER(gpu);
    *mode = 1;
    return SUCCESS;
}

int nvmlDeviceGetEccMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu);
    *current = *pending = 1;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu);
    *current = *pending = (unsigned)atoi(setting("FAKE_NVML_MIG", "0"));
    return SUCCESS;
}

int nvmlDeviceGetArchitecture(Gpu *gpu, unsigned *architecture) {
    ENTER(gpu);
    *architecture = (unsigned)atoi(setting("FAKE_NVML_ARCHITECTURE", "9"));
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *processes) {
    ENTER(gpu);
    unsigned running = (unsigned)atoi(setting("FAKE_NVML_PROCESSES", "1")), room = *count, pids[64];
    for (unsigned i = 0; i < 64; i++)
        pids[i] = 1000 + i;
    const char *path = setting("FAKE_NVML_PIDS", "");
    if (*path) {
        FILE *file = fopen(path, "r");
        unsigned pid, index;
        for (int found = running = 0; file && running < 64 && (found = fscanf(file, "%u@%u", &pid, &index)) >= 1;)
            if (found == 1 || index == gpu->index)
                pids[running++] = pid;
        if (file)
            fclose(file);
    }
    *count = running;
    if (room < running)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < running; i++)
        processes[i] = (Process){pids[i % 64], 1ULL << 30, ~0u, ~0u};
    return SUCCESS;
}

int nvmlGpmQueryDeviceSupport(Gpu *gpu, GpmSupport *support) {
    ENTER(gpu);
    support->supported = 1;
    return SUCCESS;
}

typedef struct { int64_t time_ns; unsigned index; } GpmSample;

int nvmlGpmSampleAlloc(void **sample) {
    ENTER(NULL);
    *sample = calloc(1, sizeof(GpmSample));
    return SUCCESS;
}

int nvmlGpmSampleFree(void *sample) {
    free(sample);
    return SUCCESS;
}

int nvmlGpmSampleGet(Gpu *gpu, void *sample) {
    ENTER(gpu);
    int64_t renewal_ns = atoi(setting("FAKE_NVML_GPM_MS", "0")) * 1000000LL, time_ns = now_ns();
    *(GpmSample *)sample = (GpmSample){time_ns - (renewal_ns ? time_ns % renewal_ns : 0), gpu->index};
    return SUCCESS;
}

typedef struct {
    unsigned id;
    int result;
    double value;
    const char *names[3];
} GpmMetric;

typedef struct {
    unsigned version, count;
    void *before, *after;
    GpmMetric metrics[];
} GpmMetrics;

/* Metric k reads k per cent; 21 fails. DRAM (10) is busy as the clock's seconds go: the mean of t % 10 s, times 10; under a
   curve that follows a load, 90 % while that is on. */
int nvmlGpmMetricsGet(GpmMetrics *asked) {
    ENTER(NULL);
    const GpmSample *before = asked->before, *after = asked->after;
    double start_s = (double)before->time_ns / 1e9, end_s = (double)after->time_ns / 1e9;
    for (unsigned i = 0; i < asked->count; i++) {
        GpmMetric *metric = &asked->metrics[i];
        metric->result = metric->id == 21 ? NOT_SUPPORTED : SUCCESS;
        metric->value = metric->id;
        if (metric->id == 10)
            metric->value = 10.0 * (fmod(start_s, 10.0) + (end_s - start_s) / 2);
        if (metric->id == 10 && curve_of(after->index).kind == 'l') {
            int is_on;
            int64_t on_ns = loaded_ns(after->index, after->time_ns, &is_on) - loaded_ns(after->index, before->time_ns, &is_on);
            metric->value = 90.0 * (double)on_ns / fmax(1.0, (double)(after->time_ns - before->time_ns));
        }
        if (after->time_ns == before->time_ns)
            metric->value = NAN;
    }
    return SUCCESS;
}
