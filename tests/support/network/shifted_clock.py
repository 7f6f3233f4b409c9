"""A clock that is wrong for some processes only: a small library in front of the C library's clock.

Debian's libfaketime 0.9.10 is no use here: with Python 3.11 either `time.sleep` fails or `Event.wait` takes an hour
more, as it leaves the monotonic clock alone or does not. This one leaves all clocks but the time of day alone, and can
shift it while processes run.
"""

import os
import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = """
/* No headers: a bare compiler will do. 64-bit Linux. */
struct moment { long seconds, fraction; };
extern void *dlsym(void *, const char *), *dlvsym(void *, const char *, const char *), *mmap(void *, unsigned long, int,
    int, int, long);
extern char *getenv(const char *);
extern int open(const char *, int, ...), close(int);
#define NEXT ((void *)-1L)
#define EARLIEST 1000000000L  /* a deadline after this is a time of day: no machine has run for so long */

static long shift(void) {
    static volatile long *found;
    static long nothing;
    if (!found) {
        char *file = getenv("SHIFTED_CLOCK");
        int opened = file ? open(file, 0) : -1;
        void *mapped = opened < 0 ? NEXT : mmap(0, 8, 1, 1, opened, 0);
        if (opened >= 0) close(opened);
        found = mapped == NEXT ? &nothing : (volatile long *)mapped;
    }
    return *found;
}
static void *real(const char *name) {
    void *found = dlvsym(NEXT, name, "GLIBC_2.3.2");  /* there are two of pthread_cond_timedwait */
    return found ? found : dlsym(NEXT, name);
}
#define REAL(kind, name, ...) static kind (*call)(__VA_ARGS__); if (!call) call = real(#name)
static const struct moment *back(const struct moment *deadline, struct moment *room) {
    if (!deadline || deadline->seconds < EARLIEST) return deadline;
    room->seconds = deadline->seconds - shift();
    room->fraction = deadline->fraction;
    return room;
}

int clock_gettime(int clock, struct moment *now) {
    REAL(int, clock_gettime, int, struct moment *);
    int done = call(clock, now);
    if (!done && (clock == 0 || clock == 5)) now->seconds += shift();
    return done;
}
int gettimeofday(struct moment *now, void *zone) {
    REAL(int, gettimeofday, struct moment *, void *);
    int done = call(now, zone);
    if (!done) now->seconds += shift();
    return done;
}
long time(long *kept) {
    struct moment now;
    clock_gettime(0, &now);
    if (kept) *kept = now.seconds;
    return now.seconds;
}
int timespec_get(struct moment *now, int base) {
    return clock_gettime(0, now) ? 0 : base;
}
int clock_nanosleep(int clock, int flags, const struct moment *wish, struct moment *left) {
    REAL(int, clock_nanosleep, int, int, const struct moment *, struct moment *);
    struct moment room;
    return call(clock, flags, flags ? back(wish, &room) : wish, left);
}
int pthread_cond_timedwait(void *condition, void *lock, const struct moment *deadline) {
    REAL(int, pthread_cond_timedwait, void *, void *, const struct moment *);
    struct moment room;
    return call(condition, lock, back(deadline, &room));
}
int pthread_cond_clockwait(void *condition, void *lock, int clock, const struct moment *deadline) {
    REAL(int, pthread_cond_clockwait, void *, void *, int, const struct moment *);
    struct moment room;
    return call(condition, lock, clock, back(deadline, &room));
}
int pthread_mutex_timedlock(void *lock, const struct moment *deadline) {
    REAL(int, pthread_mutex_timedlock, void *, const struct moment *);
    struct moment room;
    return call(lock, back(deadline, &room));
}
int sem_timedwait(void *semaphore, const struct moment *deadline) {
    REAL(int, sem_timedwait, void *, const struct moment *);
    struct moment room;
    return call(semaphore, back(deadline, &room));
}
int sem_clockwait(void *semaphore, int clock, const struct moment *deadline) {
    REAL(int, sem_clockwait, void *, int, const struct moment *);
    struct moment room;
    return call(semaphore, clock, back(deadline, &room));
}
"""


def compiler() -> str | None:
    """A C compiler; `tcc`, the smallest one, will do."""
    return next((found for name in ("cc", "gcc", "clang", "tcc") if (found := shutil.which(name))), None)


class ShiftedClock:
    """The clock of processes that are started with its `environment`.

    Args:
        folder: Where the shift and the library are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._shift, self._library = folder / "clock.shift", folder / "clock.so"
        _compile(self._library)
        self._shift.write_bytes(struct.pack("=q", 0))

    @property
    def environment(self) -> dict[str, str]:
        """What a process is to be started with."""
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._shift)}

    def shift(self, seconds: int) -> None:
        """Let the clock be ahead (or behind) from now on, also in processes that run."""
        with self._shift.open("r+b", buffering=0) as stream:
            stream.write(struct.pack("=q", seconds))


def _compile(library: Path) -> None:
    found = compiler()
    assert found is not None, "no C compiler"
    source = library.with_suffix(".c")
    source.write_text(_SOURCE)
    command = [found, "-shared", "-fPIC", "-nostdlib", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
