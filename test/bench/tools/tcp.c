// tcp: both ends of the byte stream series, and the opener of idle connections.
//
//   tcp sink PORT                     accepts and throws away
//   tcp echo PORT                     accepts and sends back
//   tcp send PORT CONNS SECS          writes as fast as it may
//   tcp ping PORT CONNS SECS BYTES    one message each way at a time, on each connection
//   tcp idle PORT CONNS               one request on each connection, then says "idle",
//                                     holds them until its standard input ends, and asks
//                                     once more on each
//
// Everything is on 127.0.0.1. The measuring ones print one line of JSON: rate in
// Gbit/s or round trips a second, n in GB (10^9 bytes) or round trips, times in
// microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, MAXFD = 65536, MAXSAMPLES = 4 << 20 };

static char buf[1 << 18];
static const int one = 1;
static int poller;

static void die(const char *what) { perror(what); exit(1); }

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct sockaddr_in loopback(const char *port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static void watch(int fd, unsigned events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };
	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

static int dial(const char *port)
{
	struct sockaddr_in a = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static int dial_nonblocking(const char *port, unsigned events)
{
	int fd = dial(port);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	watch(fd, events);
	return fd;
}

// put writes all of a small message; a full socket buffer is a fault of the set-up.
static void put(int fd, size_t n)
{
	if (send(fd, buf, n, MSG_NOSIGNAL) != (ssize_t)n) die("send");
}

_Noreturn static void serve(const char *port, int echo)
{
	struct sockaddr_in a = loopback(port);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) die("listen");
	watch(listener, EPOLLIN);
	struct epoll_event ev[EVENTS];
	for (;;) {
		int n = epoll_wait(poller, ev, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = ev[i].data.fd;
			if (fd == listener) {
				fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				if (fd < 0) continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				watch(fd, EPOLLIN);
				continue;
			}
			ssize_t got = recv(fd, buf, sizeof buf, 0);
			if (got < 0 && errno == EAGAIN) continue;
			// An echo that does not fit is an error its client sees.
			if (got <= 0 || (echo && send(fd, buf, (size_t)got, MSG_NOSIGNAL) != got)) close(fd);
		}
	}
}

static int send_all(const char *port, int conns, double secs)
{
	for (int i = 0; i < conns; i++) dial_nonblocking(port, EPOLLOUT);
	struct epoll_event ev[EVENTS];
	double start = now(), t = start, bytes = 0;
	for (; t - start < secs; t = now()) {
		int n = epoll_wait(poller, ev, EVENTS, 100);
		for (int i = 0; i < n; i++) {
			ssize_t put = send(ev[i].data.fd, buf, sizeof buf / 2, MSG_NOSIGNAL);
			if (put < 0 && errno != EAGAIN) die("send");
			if (put > 0) bytes += (double)put;
		}
	}
	printf("{\"rate\":%.4f,\"n\":%.5f}\n", bytes * 8 / 1e9 / (t - start), bytes / 1e9);
	return 0;
}

static int ascending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return x < y ? -1 : x > y;
}

static int ping(const char *port, int conns, double secs, size_t size)
{
	static struct { double sent; size_t got; } at[MAXFD];
	float *took = malloc(sizeof *took * MAXSAMPLES);
	int *fds = malloc(sizeof *fds * (size_t)conns);
	for (int i = 0; i < conns; i++) fds[i] = dial_nonblocking(port, EPOLLIN);
	usleep(100000); // the proxies have their second connections by then
	struct epoll_event ev[EVENTS];
	double start = now(), t = start;
	for (int i = 0; i < conns; i++) {
		at[fds[i]].sent = now();
		put(fds[i], size);
	}
	size_t n = 0;
	while (t - start < secs) {
		int k = epoll_wait(poller, ev, EVENTS, 100);
		for (int i = 0; i < k; i++) {
			int fd = ev[i].data.fd;
			ssize_t got = recv(fd, buf, sizeof buf, 0);
			if (got < 0 && errno == EAGAIN) continue;
			if (got <= 0) die("recv");
			if ((at[fd].got += (size_t)got) < size) continue;
			t = now();
			if (n < MAXSAMPLES) took[n] = (float)((t - at[fd].sent) * 1e6);
			n++;
			at[fd].got = 0;
			at[fd].sent = t;
			put(fd, size);
		}
		if (k == 0) t = now();
	}
	size_t kept = n < MAXSAMPLES ? n : MAXSAMPLES;
	if (kept == 0) {
		fprintf(stderr, "ping: nothing came back\n");
		return 1;
	}
	qsort(took, kept, sizeof *took, ascending);
	printf("{\"rate\":%.1f,\"n\":%zu,\"p50\":%.1f,\"p99\":%.1f}\n", (double)n / (t - start), n, took[kept / 2], took[kept - 1 - kept / 100]);
	return 0;
}

// ask sends a request and takes the first bytes of its response.
static void ask(int fd)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: idle\r\n\r\n";
	if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != sizeof request - 1) die("send");
	ssize_t n = recv(fd, buf, sizeof buf, 0);
	if (n < 12 || memcmp(buf, "HTTP/1.1 200", 12) != 0) {
		fprintf(stderr, "idle: a request was not answered with 200 (%zd bytes)\n", n);
		exit(1);
	}
}

static int idle(const char *port, int conns)
{
	int *fds = malloc(sizeof *fds * (size_t)conns);
	for (int i = 0; i < conns; i++) ask(fds[i] = dial(port));
	printf("idle\n");
	fflush(stdout);
	while (read(0, buf, sizeof buf) > 0) continue;
	for (int i = 0; i < conns; i++) {
		while (recv(fds[i], buf, sizeof buf, MSG_DONTWAIT) > 0) continue; // the rest of the first body
		ask(fds[i]);
	}
	printf("answered %d\n", conns);
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	poller = epoll_create1(EPOLL_CLOEXEC);
	const char *what = argc > 2 ? argv[1] : "";
	if (argc == 3 && !strcmp(what, "sink")) serve(argv[2], 0);
	if (argc == 3 && !strcmp(what, "echo")) serve(argv[2], 1);
	if (argc == 4 && !strcmp(what, "idle")) return idle(argv[2], atoi(argv[3]));
	if (argc == 5 && !strcmp(what, "send")) return send_all(argv[2], atoi(argv[3]), atof(argv[4]));
	if (argc == 6 && !strcmp(what, "ping")) return ping(argv[2], atoi(argv[3]), atof(argv[4]), (size_t)atol(argv[5]));
	fprintf(stderr, "usage: tcp sink|echo PORT, tcp send PORT CONNS SECS, tcp ping PORT CONNS SECS BYTES, tcp idle PORT CONNS\n");
	return 2;
}
