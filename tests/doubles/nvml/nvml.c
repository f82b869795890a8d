/*
 * A stand-in for libnvidia-ml.so.1 on test hosts: the functions of NVML that gpurack's collector calls through pynvml,
 * answered from a file. See README.md for what it does not prove.
 *
 * The file ($NVML_DOUBLE, else /etc/nvml-double) has a line "key value" for each answer; tests/testbed/gpus.py writes
 * it from a scenario in JSON. A value "!15" is the error of that number. A key that is missing is "not supported".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define MIG_DEVICES 7
#define LINKS 18
#define NOT_AVAILABLE (~0ULL)

typedef struct {
    int gpu;
    int mig; /* -1: the GPU itself */
} device;
typedef struct {
    char legacy[16];
    unsigned domain, bus, slot, device_id, subsystem_id;
    char bus_id[32];
} pci_info;
typedef struct {
    unsigned long long total, free, used;
} memory_info;
typedef struct {
    unsigned gpu, memory;
} utilization_info;
typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} process_info;

static struct {
    char key[64];
    char value[256];
} *answers;
static unsigned count;
static int initialized;
static device devices[64][MIG_DEVICES + 1];

static void load(void) {
    const char *path = getenv("NVML_DOUBLE");
    FILE *file = fopen(path ? path : "/etc/nvml-double", "r");
    char line[400];
    free(answers);
    answers = NULL;
    count = 0;
    while (file && fgets(line, sizeof line, file)) {
        answers = realloc(answers, (count + 1) * sizeof *answers);
        if (!answers)
            abort();
        memset(&answers[count], 0, sizeof *answers);
        if (sscanf(line, "%63s %255[^\n]", answers[count].key, answers[count].value) >= 1)
            count++;
    }
    if (file)
        fclose(file);
}

static const char *find(const char *key) {
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(answers[i].key, key))
            return answers[i].value;
    return NULL;
}

/* The answer of a device, or of the whole machine without one. */
static int answer(const device *d, const char *name, const char **value) {
    char key[64];
    if (!initialized)
        return UNINITIALIZED;
    if (!d)
        snprintf(key, sizeof key, "%s", name);
    else if (d->mig < 0)
        snprintf(key, sizeof key, "gpus.%d.%s", d->gpu, name);
    else
        snprintf(key, sizeof key, "gpus.%d.mig.%d.%s", d->gpu, d->mig, name);
    *value = find(key);
    if (!*value)
        return NOT_SUPPORTED;
    return **value == '!' ? atoi(*value + 1) : SUCCESS;
}

static int number(const device *d, const char *name, unsigned long long *out) {
    const char *value;
    int rc = answer(d, name, &value);
    if (rc == SUCCESS)
        *out = strtoull(value, NULL, 0);
    return rc;
}

static int small(const device *d, const char *name, unsigned *out) {
    unsigned long long value = 0;
    int rc = number(d, name, &value);
    if (rc == SUCCESS)
        *out = (unsigned)value;
    return rc;
}

static int string(const device *d, const char *name, char *out, unsigned length) {
    const char *value;
    int rc = answer(d, name, &value);
    if (rc == SUCCESS) {
        if (strlen(value) >= length)
            return INSUFFICIENT_SIZE;
        strcpy(out, value);
    }
    return rc;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    if (find("init_delay_seconds"))
        sleep((unsigned)atoi(find("init_delay_seconds")));
    if (!count)
        return DRIVER_NOT_LOADED;
    if (find("init"))
        return atoi(find("init") + 1);
    initialized = 1;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    initialized = 0;
    return SUCCESS;
}

/* NVIDIA's own words, as libnvidia-ml 535.309.01 and 550.163.01 have them. */
const char *nvmlErrorString(int error) {
    static const char *words[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "GPU access blocked by the operating system",
        "Driver/library version mismatch"};
    return error >= 0 && error < (int)(sizeof words / sizeof *words) ? words[error] : "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *out, unsigned length) { return string(NULL, "driver_version", out, length); }

int nvmlSystemGetCudaDriverVersion_v2(int *out) { return small(NULL, "cuda_driver_version", (unsigned *)out); }

int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned length) {
    char key[64];
    snprintf(key, sizeof key, "process_names.%u", pid);
    int rc = string(NULL, key, out, length);
    return rc == NOT_SUPPORTED ? NOT_FOUND : rc;
}

int nvmlDeviceGetCount_v2(unsigned *out) { return small(NULL, "gpus.count", out); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    unsigned gpus = 0;
    const char *value;
    int rc = small(NULL, "gpus.count", &gpus);
    if (rc != SUCCESS)
        return rc;
    if (index >= gpus || index >= sizeof devices / sizeof *devices)
        return INVALID_ARGUMENT;
    *out = &devices[index][MIG_DEVICES];
    (*out)->gpu = (int)index;
    (*out)->mig = -1;
    rc = answer(*out, "handle", &value);
    return rc == NOT_SUPPORTED ? SUCCESS : rc;
}

int nvmlDeviceGetUUID(device *d, char *out, unsigned length) { return string(d, "uuid", out, length); }

int nvmlDeviceGetName(device *d, char *out, unsigned length) { return string(d, "name", out, length); }

int nvmlDeviceGetPciInfo_v3(device *d, pci_info *out) {
    memset(out, 0, sizeof *out);
    int rc = string(d, "bus_id", out->bus_id, sizeof out->bus_id);
    if (rc == SUCCESS)
        sscanf(out->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->slot);
    return rc;
}

int nvmlDeviceGetMemoryInfo(device *d, memory_info *out) {
    int rc = number(d, "memory_total", &out->total);
    if (rc == SUCCESS)
        rc = number(d, "memory_used", &out->used);
    out->free = out->total - out->used;
    return rc;
}

int nvmlDeviceGetUtilizationRates(device *d, utilization_info *out) {
    out->memory = 0;
    return small(d, "utilization", &out->gpu);
}

int nvmlDeviceGetTemperature(device *d, int sensor, unsigned *out) {
    return sensor ? INVALID_ARGUMENT : small(d, "temperature", out);
}

int nvmlDeviceGetTemperatureThreshold(device *d, int threshold, unsigned *out) {
    return threshold == 1 ? small(d, "temperature_slowdown", out) : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(device *d, unsigned *out) { return small(d, "power_usage", out); }

int nvmlDeviceGetEnforcedPowerLimit(device *d, unsigned *out) { return small(d, "power_limit", out); }

int nvmlDeviceGetCurrentClocksThrottleReasons(device *d, unsigned long long *out) {
    return number(d, "throttle_reasons", out);
}

int nvmlDeviceGetEccMode(device *d, unsigned *current, unsigned *pending) {
    int rc = small(d, "ecc_mode", current);
    *pending = *current;
    return rc;
}

int nvmlDeviceGetTotalEccErrors(device *d, int type, int counter, unsigned long long *out) {
    return type == 1 && counter == 0 ? number(d, "ecc_uncorrected", out) : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(device *d, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    *corrected = *uncorrected = *failed = 0;
    return small(d, "remap_pending", pending);
}

int nvmlDeviceGetRetiredPagesPendingStatus(device *d, unsigned *out) { return small(d, "retirement_pending", out); }

int nvmlDeviceGetPersistenceMode(device *d, unsigned *out) { return small(d, "persistence", out); }

int nvmlDeviceGetMigMode(device *d, unsigned *current, unsigned *pending) {
    int rc = small(d, "mig_mode", current);
    *pending = *current;
    return rc;
}

int nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned *out) {
    unsigned mode = 0;
    small(d, "mig_mode", &mode);
    *out = mode ? MIG_DEVICES : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned index, device **out) {
    unsigned migs = 0;
    small(d, "mig.count", &migs);
    if (index >= MIG_DEVICES)
        return INVALID_ARGUMENT;
    if (index >= migs)
        return NOT_FOUND;
    *out = &devices[d->gpu][index];
    (*out)->gpu = d->gpu;
    (*out)->mig = (int)index;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device *d, unsigned link, unsigned *out) {
    char name[32];
    if (link >= LINKS)
        return INVALID_ARGUMENT;
    snprintf(name, sizeof name, "nvlinks.%u", link);
    return small(d, name, out);
}

int nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned *size, process_info *out) {
    unsigned processes = 0;
    char name[32];
    int rc = small(d, "processes.count", &processes);
    if (rc != SUCCESS)
        return rc;
    if (*size < processes || (processes && !out)) {
        *size = processes;
        return INSUFFICIENT_SIZE;
    }
    *size = processes;
    for (unsigned i = 0; i < processes; i++) {
        snprintf(name, sizeof name, "processes.%u.pid", i);
        small(d, name, &out[i].pid);
        snprintf(name, sizeof name, "processes.%u.memory", i);
        if (number(d, name, &out[i].memory) != SUCCESS)
            out[i].memory = NOT_AVAILABLE;
        out[i].gpu_instance = out[i].compute_instance = ~0U;
    }
    return SUCCESS;
}
