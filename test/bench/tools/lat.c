// lat PORT CONNS RATE SECS: an open-loop HTTP/1.1 client on 127.0.0.1.
//
// Requests are due at fixed times, RATE a second, whatever became of those before
// them, and a latency counts from the time at which the request was due: one that
// had to wait for a free connection has waited (no coordinated omission). The
// first tenth is not counted. It prints one line of JSON: rate (requests answered
// a second), n (all of them), times in microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, HEAD = 4096 };

struct conn {
	int fd;
	long due;         // of the request under way, in ns
	long body;        // bytes of the response to come, -1 while its head is read
	size_t kept;      // bytes of the head
	char head[HEAD];
};

static const char request[] = "GET / HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: lat\r\nAccept: */*\r\n\r\n";

static void die(const char *what) { perror(what); exit(1); }

static void fail(const char *what)
{
	fprintf(stderr, "lat: %s\n", what);
	exit(1);
}

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;
	return x < y ? -1 : x > y;
}

// head takes the head of a response out of the connection's bytes, and sets how
// much of the body is to come. It returns 0 where the head is not complete.
static int head(struct conn *c)
{
	char *end = memmem(c->head, c->kept, "\r\n\r\n", 4);
	if (end == NULL) {
		if (c->kept == HEAD) fail("a response head of more than 4 KB");
		return 0;
	}
	if (memcmp(c->head, "HTTP/1.1 200", 12) != 0) fail("a request was not answered with 200");
	*end = 0;
	char *length = strcasestr(c->head, "\r\ncontent-length:");
	if (length == NULL) fail("a response without content-length");
	c->body = atol(length + 17) - (long)(c->kept - (size_t)(end + 4 - c->head));
	return 1;
}

// take reads what is there; it returns 1 where the response is complete.
static int take(struct conn *c)
{
	static char scratch[65536];
	ssize_t n = c->body < 0 ? recv(c->fd, c->head + c->kept, HEAD - c->kept, 0) : recv(c->fd, scratch, sizeof scratch, 0);
	if (n < 0 && errno == EAGAIN) return 0;
	if (n <= 0) fail("a connection was closed under a request");
	if (c->body >= 0) {
		c->body -= n;
	} else {
		c->kept += (size_t)n;
		if (!head(c)) return 0;
	}
	if (c->body < 0) fail("more bytes than content-length said");
	return c->body == 0;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: lat PORT CONNS RATE SECS\n");
		return 2;
	}
	size_t conns = (size_t)atol(argv[2]), idle = 0;
	double rate = atof(argv[3]), gap = 1e9 / rate;
	long total = (long)(rate * atof(argv[4])), sent = 0, done = 0;
	struct conn *all = calloc(conns, sizeof *all), **idles = calloc(conns, sizeof *idles);
	long *took = calloc((size_t)total, sizeof *took);
	int poller = epoll_create1(EPOLL_CLOEXEC);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	for (size_t i = 0; i < conns; i++) {
		struct conn *c = &all[i];
		int one = 1;
		c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a)) die("connect");
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
		struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
		epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
		idles[idle++] = c;
	}
	struct epoll_event ev[EVENTS];
	long start = now() + 20000000, last = start;
	while (done < total) {
		long next = start + (long)((double)sent * gap), t = now();
		for (; sent < total && idle > 0 && next <= t; next = start + (long)((double)sent * gap)) {
			struct conn *c = idles[--idle]; // the one used last: few connections stay warm
			c->due = next;
			c->body = -1;
			c->kept = 0;
			if (send(c->fd, request, sizeof request - 1, MSG_NOSIGNAL) != sizeof request - 1) die("send");
			sent++;
		}
		long wait = 5000000000L; // nothing to send: only responses are awaited
		if (sent < total && idle > 0) {
			wait = next - now();
			if (wait < 0) wait = 0;
		}
		struct timespec limit = { wait / 1000000000L, wait % 1000000000L };
		int n = epoll_pwait2(poller, ev, EVENTS, &limit, NULL);
		if (n == 0 && wait == 5000000000L) fail("no response for 5 s");
		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;
			if (!take(c)) continue;
			last = now();
			took[done++] = last - c->due;
			idles[idle++] = c;
		}
	}
	long *counted = took + total / 10, n = total - total / 10;
	qsort(counted, (size_t)n, sizeof *counted, ascending);
#define QUANTILE(q) ((double)counted[(long)((double)(n - 1) * (q))] / 1e3)
	printf("{\"rate\":%.1f,\"n\":%ld,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f}\n",
		(double)done * 1e9 / (double)(last - start), done, QUANTILE(.5), QUANTILE(.9), QUANTILE(.99), QUANTILE(.999));
	return 0;
}
