#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) { printf("hello from %d, %s\n", getpid(), argc > 1 ? argv[1] : "nobody"); return 0; }
