/* lifecycles: lead containers through create, start, state, kill and delete, one after the other.
 *
 *   lifecycles STDERR_FILE TIMEOUT_S COUNT PREFIX BUNDLE RUNTIME [GLOBAL-OPTION...]
 *
 * For the measurement of rates, where whatever stands between two calls of the runtime is counted too: no interpreter,
 * no program in between, one vfork per call. stdin and stdout of the runtime are /dev/null, stderr goes to STDERR_FILE.
 * The containers are called PREFIX-0 and so on; their pid file is BUNDLE/pid. A call that takes longer than TIMEOUT_S
 * is killed. Exit status 1 names the call that failed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 128

static volatile pid_t child;
static int in, out, err, seconds;
static char **prefix;
static int prefixes;

static void on_alarm(int sig)
{
	(void)sig;
	kill(child, SIGKILL);
}

static void call(char **verb)
{
	char *argv[MOST];
	int n = 0;
	for (; n < prefixes; n++)
		argv[n] = prefix[n];
	for (char **v = verb; *v; v++)
		argv[n++] = *v;
	argv[n] = NULL;
	pid_t pid = vfork();
	if (pid < 0) {
		perror("lifecycles: vfork");
		exit(2);
	}
	if (pid == 0) {
		dup2(in, 0);
		dup2(out, 1);
		dup2(err, 2);
		execv(argv[0], argv);
		_exit(127);
	}
	child = pid;
	alarm(seconds);
	int status;
	if (waitpid(pid, &status, 0) != pid) {
		perror("lifecycles: waitpid");
		exit(2);
	}
	alarm(0);
	if (status) {
		fprintf(stderr, "lifecycles: %s %s: wait status %#x\n", argv[0], verb[0], status);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc < 7 || argc > MOST / 2) {
		fprintf(stderr, "usage: lifecycles STDERR_FILE TIMEOUT_S COUNT PREFIX BUNDLE RUNTIME [GLOBAL-OPTION...]\n");
		return 2;
	}
	in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	out = open("/dev/null", O_WRONLY | O_CLOEXEC);
	err = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (in < 0 || out < 0 || err < 0) {
		perror("lifecycles: open");
		return 2;
	}
	seconds = atoi(argv[2]);
	prefix = argv + 6;
	prefixes = argc - 6;
	struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	sigaction(SIGALRM, &sa, NULL);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);

	char pid_file[4096], id[256], text[32];
	snprintf(pid_file, sizeof pid_file, "%s/pid", argv[5]);
	for (int i = 0; i < atoi(argv[3]); i++) {
		snprintf(id, sizeof id, "%s-%d", argv[4], i);
		call((char *[]){ "create", "-b", argv[5], "--pid-file", pid_file, id, NULL });
		int fd = open(pid_file, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
		close(fd);
		text[n < 0 ? 0 : n] = 0;
		pid_t pid = atoi(text);
		if (pid <= 1) {
			fprintf(stderr, "lifecycles: no pid in %s\n", pid_file);
			return 1;
		}
		call((char *[]){ "start", id, NULL });
		call((char *[]){ "state", id, NULL });
		call((char *[]){ "kill", id, "KILL", NULL });
		if (waitpid(pid, NULL, 0) != pid) {
			perror("lifecycles: wait for the container");
			return 1;
		}
		call((char *[]){ "delete", id, NULL });
	}
	return 0;
}
