/* floored: a lifecycle at the floor.
 *
 *   floored [-C DIR/ | -W FILE=VALUE]... create -b BUNDLE --pid-file FILE ID
 *   floored [the same]... start ID | state ID | kill ID SIGNAL | delete ID
 *
 * A runtime's command line for `lifecycles` to drive, with what the kernel itself needs behind it: create is floor (it
 * makes DIR/ID for each DIR, and the program goes on by itself), start and state do nothing, kill kills, delete removes
 * the cgroups. No state: the container's process is found in its first cgroup.
 */
#define main floor_main
#include "floor.c"
#undef main

#define MOST 64

static char path[MOST][4096];

int main(int argc, char **argv)
{
	int options = 1, dirs = 0;
	while (options + 1 < argc && argv[options][0] == '-')
		options += 2;
	if (options + 1 >= argc || options > MOST - 8) {
		fprintf(stderr, "usage: floored [-C DIR/ | -W FILE=VALUE]... create|start|state|kill|delete ...\n");
		return 2;
	}
	char **call = argv + options, *id = call[1];
	int create = !strcmp(call[0], "create");
	if (create) {
		if (argc - options != 6 || strcmp(call[1], "-b") || strcmp(call[3], "--pid-file"))
			return 2;
		id = call[5];
	}
	for (int i = 1; i < options; i += 2)
		if (!strcmp(argv[i], "-C"))
			snprintf(path[dirs++], sizeof path[0], "%s%s", argv[i + 1], id);
	if (!dirs)
		return 2;
	if (create) {
		char rootfs[4096], *args[MOST];
		int n = 0, dir = 0;
		for (; n < options; n++)
			args[n] = n && !strcmp(argv[n - 1], "-C") ? path[dir++] : argv[n];
		snprintf(rootfs, sizeof rootfs, "%s/rootfs", call[2]);
		char *rest[] = { "-p", call[4], rootfs, "/bin/sleep", "1000", NULL };
		memcpy(args + n, rest, sizeof rest);
		return floor_main(n + 5, args);
	}
	if (!strcmp(call[0], "kill")) {
		char file[4200], text[32] = "";
		snprintf(file, sizeof file, "%s/cgroup.procs", path[0]);
		int fd = open(file, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
			die(file);
		if (atoi(text) <= 1 || kill(atoi(text), SIGKILL) < 0)
			die("kill");
	} else if (!strcmp(call[0], "delete")) {
		while (dirs--)
			if (rmdir(path[dirs]) < 0)
				die(path[dirs]);
	} else if (strcmp(call[0], "start") && strcmp(call[0], "state")) {
		return 2;
	}
	return 0;
}
