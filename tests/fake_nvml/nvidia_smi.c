/* A stand-in for nvidia-smi over the fake libnvidia-ml: power limits, asked for and set.

     nvidia-smi --query-gpu=uuid,power.limit,... --format=csv,noheader,nounits [-i UUID]
     nvidia-smi -i UUID -pl WATTS
     nvidia-smi --help          by which others see that there is one

   It is run with an empty environment, so the file fake.env beside it holds the library's settings, a NAME=VALUE a line.
   Watts outside the board's bounds and callers other than root are refused, as by the real one. */

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INVALID_USE = 2, INSUFFICIENT_PERMISSION = 4 };

typedef struct gpu Gpu;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

int nvmlInitWithFlags(unsigned);
const char *nvmlErrorString(int);
int nvmlDeviceGetCount_v2(unsigned *);
int nvmlDeviceGetHandleByIndex_v2(unsigned, Gpu **);
int nvmlDeviceGetHandleByUUID(const char *, Gpu **);
int nvmlDeviceGetUUID(Gpu *, char *, unsigned);
int nvmlDeviceGetPciInfo_v3(Gpu *, PciInfo *);
int nvmlDeviceGetPowerManagementLimit(Gpu *, unsigned *);
int nvmlDeviceSetPowerManagementLimit(Gpu *, unsigned);
int nvmlDeviceGetEnforcedPowerLimit(Gpu *, unsigned *);
int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *, unsigned *, unsigned *);
int nvmlDeviceGetMigMode(Gpu *, unsigned *, unsigned *);

static void fail(int code, const char *what) {
    printf("%s\n", what);
    exit(code);
}

static void check(int result) {
    if (result)
        fail(result, nvmlErrorString(result));
}

static void read_settings(void) {
    char path[PATH_MAX + 16], line[512];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
    path[length < 0 ? 0 : length] = 0;
    strcpy(strrchr(path, '/') + 1, "fake.env");
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, '=');
        if (value) {
            *value = 0;
            setenv(line, value + 1, 1);
        }
    }
}

static void print_field(Gpu *gpu, const char *field) {
    char uuid[96];
    PciInfo pci;
    unsigned value_mw = 0, least_mw, most_mw, pending;
    if (!strcmp(field, "uuid")) {
        check(nvmlDeviceGetUUID(gpu, uuid, sizeof uuid));
        printf("%s", uuid);
    } else if (!strcmp(field, "pci.bus_id")) {
        check(nvmlDeviceGetPciInfo_v3(gpu, &pci));
        printf("%s", pci.bus_id);
    } else if (!strcmp(field, "mig.mode.current")) {
        check(nvmlDeviceGetMigMode(gpu, &value_mw, &pending));
        printf("%s", value_mw ? "Enabled" : "Disabled");
    } else {
        check(nvmlDeviceGetPowerManagementLimitConstraints(gpu, &least_mw, &most_mw));
        if (!strcmp(field, "power.limit"))
            check(nvmlDeviceGetPowerManagementLimit(gpu, &value_mw));
        else if (!strcmp(field, "enforced.power.limit"))
            check(nvmlDeviceGetEnforcedPowerLimit(gpu, &value_mw));
        else if (!strcmp(field, "power.min_limit"))
            value_mw = least_mw;
        else if (!strcmp(field, "power.max_limit"))
            value_mw = most_mw;
        else
            fail(INVALID_USE, "Field is not a valid field to query.");
        printf("%.2f", value_mw / 1e3);
    }
}

static void print_row(Gpu *gpu, char *fields) {
    const char *between = "";
    for (char *field = strtok(fields, ","); field; field = strtok(NULL, ",")) {
        printf("%s", between);
        print_field(gpu, field);
        between = ", ";
    }
    printf("\n");
}

static void set_limit(Gpu *gpu, const char *watts) {
    char *rest;
    unsigned long limit_w = strtoul(watts, &rest, 10);
    unsigned least_mw, most_mw;
    if (*rest || limit_w > 100000)
        fail(INVALID_USE, "Invalid power limit.");
    if (geteuid() != 0)
        fail(INSUFFICIENT_PERMISSION, "Insufficient Permissions");
    check(nvmlDeviceGetPowerManagementLimitConstraints(gpu, &least_mw, &most_mw));
    if (limit_w * 1000 < least_mw || limit_w * 1000 > most_mw)
        fail(INVALID_USE, "Provided power limit is not a valid power limit. Terminating early due to previous errors.");
    check(nvmlDeviceSetPowerManagementLimit(gpu, (unsigned)limit_w * 1000));
    printf("Power limit was set to %lu.00 W.\nAll done.\n", limit_w);
}

int main(int count, char **words) {
    const char *which = NULL, *watts = NULL, *query = NULL, *format = "";
    Gpu *gpu = NULL;
    for (int i = 1; i < count; i++) {
        if (!strcmp(words[i], "-i") && i + 1 < count)
            which = words[++i];
        else if (!strcmp(words[i], "-pl") && i + 1 < count)
            watts = words[++i];
        else if (!strcmp(words[i], "--help"))
            return puts("NVIDIA System Management Interface") == EOF;
        else if (!strncmp(words[i], "--query-gpu=", 12))
            query = words[i] + 12;
        else if (!strncmp(words[i], "--format=", 9))
            format = words[i] + 9;
        else
            fail(INVALID_USE, "Invalid combination of input arguments.");
    }
    read_settings();
    check(nvmlInitWithFlags(0));
    if (which)
        check(nvmlDeviceGetHandleByUUID(which, &gpu));
    if (watts && which) {
        set_limit(gpu, watts);
        return 0;
    }
    unsigned gpus = 0;
    if (!query || watts || strcmp(format, "csv,noheader,nounits"))
        fail(INVALID_USE, "Invalid combination of input arguments.");
    check(nvmlDeviceGetCount_v2(&gpus));
    for (unsigned i = 0; i < gpus; i++) {
        char fields[512];
        Gpu *each;
        check(nvmlDeviceGetHandleByIndex_v2(i, &each));
        snprintf(fields, sizeof fields, "%s", query);
        if (!gpu || gpu == each)
            print_row(each, fields);
    }
    return 0;
}
