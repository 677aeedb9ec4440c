/* touched: which functions does a program run, in which order?
 *
 *   touched ADDRESSES OUT CMD [ARG...]
 *
 * ADDRESSES holds the entry points of CMD's functions, one hexadecimal number a line (from nm; CMD is not position
 * independent). A breakpoint is set on each; the first time that one is hit, its address is appended to OUT and the
 * breakpoint goes. Children are followed, also when CMD has ended, until they execute something else or end. The exit
 * status is CMD's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t *at;
static unsigned char *was, *seen;
static size_t n;

static void die(const char *what)
{
	fprintf(stderr, "touched: %s: %s\n", what, strerror(errno));
	exit(2);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static long find(uint64_t address)
{
	uint64_t *p = bsearch(&address, at, n, sizeof *at, by_value);
	return p ? p - at : -1;
}

static int memory(pid_t pid)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void arm(pid_t pid)
{
	static const unsigned char int3 = 0xcc;
	int fd = memory(pid);
	for (size_t i = 0; i < n; i++) {
		if (pread(fd, &was[i], 1, at[i]) != 1 || pwrite(fd, &int3, 1, at[i]) != 1)
			die("set a breakpoint");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: touched ADDRESSES OUT CMD [ARG...]\n");
		return 2;
	}
	FILE *list = fopen(argv[1], "r"), *out = fopen(argv[2], "a");
	if (!list || !out)
		die("open");
	size_t room = 0;
	unsigned long long address;
	while (fscanf(list, "%llx", &address) == 1) {
		if (n == room && !(at = realloc(at, (room = room ? 2 * room : 4096) * sizeof *at)))
			die("memory");
		at[n++] = address;
	}
	qsort(at, n, sizeof *at, by_value);
	was = calloc(n, 1);
	seen = calloc(n, 1);
	pid_t first = fork();
	if (first < 0)
		die("fork");
	if (first == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execv(argv[3], argv + 3);
		die(argv[3]);
	}
	int status, result = 2;
	if (waitpid(first, &status, 0) != first)
		die("wait");
	ptrace(PTRACE_SETOPTIONS, first, 0, PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC);
	ptrace(PTRACE_CONT, first, 0, 0);
	int armed = 0;
	pid_t pid;
	while ((pid = waitpid(-1, &status, __WALL)) > 0) {
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid == first)
				result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			continue;
		}
		int sig = WSTOPSIG(status), event = status >> 16;
		if (event == PTRACE_EVENT_EXEC) {
			if (pid == first && !armed) {
				arm(pid);
				armed = 1;
				ptrace(PTRACE_CONT, pid, 0, 0);
			} else {
				ptrace(PTRACE_DETACH, pid, 0, 0);
			}
			continue;
		}
		if (event || (sig == SIGSTOP)) {
			ptrace(PTRACE_CONT, pid, 0, 0);
			continue;
		}
		if (sig == SIGTRAP) {
			struct user_regs_struct regs;
			if (ptrace(PTRACE_GETREGS, pid, 0, &regs) < 0)
				die("registers");
			long i = find(regs.rip - 1);
			if (i >= 0) {
				int fd = memory(pid);
				if (pwrite(fd, &was[i], 1, at[i]) != 1)
					die("remove a breakpoint");
				close(fd);
				regs.rip--;
				ptrace(PTRACE_SETREGS, pid, 0, &regs);
				if (!seen[i]++)
					fprintf(out, "%llx\n", (unsigned long long)at[i]), fflush(out);
				ptrace(PTRACE_CONT, pid, 0, 0);
				continue;
			}
		}
		ptrace(PTRACE_CONT, pid, 0, sig);
	}
	fclose(out);
	return result;
}
