/* What a disk still has after the power went: a library to preload (Linux), used by test_power_loss.py.
 *
 * The files below POWER_LOSS_HOME are left as they are; beside them POWER_LOSS_SHADOW keeps what is durable:
 *
 *   inodes/N   the content of file N as of its last fsync or fdatasync
 *   names/N    what folder N held when it was last synced: a line "f|d MODE INODE NAME" for each file and folder
 *
 * What is there when the process starts is durable. Nothing else is: not a write, a name, a rename or a mapped page
 * without its sync. With POWER_LOSS_AT=n the process dies as it begins its nth sync from then on, which so does nothing;
 * with -1 it stops (SIGSTOP) at the beginning of each, so that whoever watches it can look at what there is.
 *
 * Nothing here reaches the disk itself, so syncs cost little. Not noticed: O_SYNC, sync, syncfs, msync.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK 65536

/* A file that was synced stays open: its inode number is not given to another, and no close drops SQLite's locks. */
struct pin {
    dev_t device;
    ino_t inode;
    int descriptor;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char home[PATH_MAX], shadow[PATH_MAX];
static long until_death; /* syncs; 0: it lives on, -1: it stops at each */
static struct pin *pins;
static size_t pinned;

/* A shadow that is not kept would pass for a disk that loses everything, or nothing. */
static void give_up(const char *what) {
    perror(what);
    abort();
}

static int pin(const char *path, const struct stat *status) {
    for (size_t i = 0; i < pinned; i++)
        if (pins[i].inode == status->st_ino && pins[i].device == status->st_dev)
            return pins[i].descriptor;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    pins = realloc(pins, (pinned + 1) * sizeof *pins);
    if (descriptor < 0 || pins == NULL)
        give_up("power_loss: pin");
    pins[pinned++] = (struct pin){status->st_dev, status->st_ino, descriptor};
    return descriptor;
}

/* Brings the shadow of a file up to date where it differs. A death in the middle leaves some of it, as on a disk. */
static void keep_content(const char *path, const struct stat *status) {
    static char now[CHUNK], before[CHUNK];
    char kept[PATH_MAX + 64];
    snprintf(kept, sizeof kept, "%s/inodes/%lu", shadow, (unsigned long)status->st_ino);
    int from = pin(path, status), to = open(kept, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (to < 0)
        give_up("power_loss: inodes");
    off_t at = 0;
    for (ssize_t length; (length = pread(from, now, CHUNK, at)) != 0; at += length) {
        if (length < 0)
            give_up("power_loss: read");
        if (pread(to, before, (size_t)length, at) != length || memcmp(now, before, (size_t)length) != 0)
            if (pwrite(to, now, (size_t)length, at) != length)
                give_up("power_loss: write");
    }
    if (ftruncate(to, at) != 0)
        give_up("power_loss: truncate");
    close(to);
}

static void keep_names(const char *path, const struct stat *status) {
    char kept[PATH_MAX + 64], part[PATH_MAX + 80];
    snprintf(kept, sizeof kept, "%s/names/%lu", shadow, (unsigned long)status->st_ino);
    snprintf(part, sizeof part, "%s.part", kept);
    DIR *folder = opendir(path);
    FILE *list = fopen(part, "we");
    if (folder == NULL || list == NULL)
        give_up("power_loss: names");
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        struct stat of;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(dirfd(folder), entry->d_name, &of, AT_SYMLINK_NOFOLLOW) != 0 ||
            (!S_ISREG(of.st_mode) && !S_ISDIR(of.st_mode)))
            continue;
        fprintf(list, "%c %o %lu %s\n", S_ISDIR(of.st_mode) ? 'd' : 'f', (unsigned)of.st_mode & 07777,
                (unsigned long)of.st_ino, entry->d_name);
    }
    closedir(folder);
    if (fclose(list) != 0 || rename(part, kept) != 0)
        give_up("power_loss: names");
}

static int keep(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)kind, (void)place;
    if (S_ISDIR(status->st_mode))
        keep_names(path, status);
    else if (S_ISREG(status->st_mode))
        keep_content(path, status);
    return 0;
}

__attribute__((constructor)) static void start(void) {
    const char *root = getenv("POWER_LOSS_HOME"), *to = getenv("POWER_LOSS_SHADOW"), *at = getenv("POWER_LOSS_AT");
    if (root == NULL || to == NULL || realpath(root, home) == NULL || realpath(to, shadow) == NULL)
        give_up("power_loss: POWER_LOSS_HOME and POWER_LOSS_SHADOW must be folders");
    unsetenv("LD_PRELOAD"); /* a child would take all that is there for durable */
    if (nftw(home, keep, 16, FTW_PHYS) != 0)
        give_up("power_loss: start");
    until_death = at != NULL ? atol(at) : 0;
}

/* Whether the descriptor is of something in the home; then it is durable now. */
static int kept(int descriptor) {
    char link[64], path[PATH_MAX];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || fstat(descriptor, &status) != 0)
        return 0;
    path[length] = '\0';
    size_t root = strlen(home);
    if (strncmp(path, home, root) != 0 || (path[root] != '\0' && path[root] != '/'))
        return 0;
    pthread_mutex_lock(&lock);
    if (until_death > 0 && --until_death == 0)
        kill(getpid(), SIGKILL);
    if (until_death < 0)
        raise(SIGSTOP);
    keep(link, &status, 0, NULL);
    pthread_mutex_unlock(&lock);
    return 1;
}

int fsync(int descriptor) { return kept(descriptor) ? 0 : (int)syscall(SYS_fsync, descriptor); }

int fdatasync(int descriptor) { return kept(descriptor) ? 0 : (int)syscall(SYS_fdatasync, descriptor); }
