// A CUDA driver that does on the processor what CUDA does on a GPU, and is stricter: a call needs a context in its own
// thread (201), handles and addresses must be live (400), and what a stream was given happens when it is waited for, no
// sooner. The tests of TensorRT engines load it in place of libcuda.so.
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
typedef void (*work)(void);
enum { STREAM = 1, GRAPH, READY, DEVICE, HOST };
typedef struct { int kind; void *dst; const void *src; size_t size; work fn; } Op;
typedef struct { Op *ops; int n; } List;
typedef struct { int capturing, priority; List queue, taken; } Stream;
static struct { void *p; int kind; size_t size; } live[4096];
static int lives;
static __thread void *current;
static int context;
#define NEED(x, code) do { if (!(x)) return code; } while (0)
static int find(const void *p, int kind, size_t size) {
  for (int i = 0; i < lives; i++) if (live[i].p == p && live[i].kind == kind && live[i].size >= size) return i + 1;
  return 0;
}
static void *born(void *p, int kind, size_t size) {
  live[lives].p = p; live[lives].kind = kind; live[lives++].size = size; return p;
}
static int dies(void *p, int kind) { int i = find(p, kind, 0); if (i) live[i - 1] = live[--lives]; return i; }
static void push(List *l, Op op) { l->ops = realloc(l->ops, (l->n + 1) * sizeof op); l->ops[l->n++] = op; }
static void add(Stream *s, Op op) { push(s->capturing ? &s->taken : &s->queue, op); }
int fake_live(void) { return lives; }
int fake_priority(Stream *s) { return s->priority; }
int fake_kernel(Stream *s, work fn) { NEED(find(s, STREAM, 0), 400); add(s, (Op){2, 0, 0, 0, fn}); return 0; }
int cuInit(unsigned f) { return f; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : a == 16 ? 14 : -1; return d; }
int cuDeviceGetName(char *t, int n, int d) { strncpy(t, "Pretended", n); return d; }
static unsigned context_flags, retained;
unsigned fake_context_flags(void) { return context_flags; }
int cuDevicePrimaryCtxSetFlags_v2(int d, unsigned f) { NEED(!retained, 708); context_flags = f; return d; }
int cuDevicePrimaryCtxRetain(void **c, int d) { retained = 1; *c = &context; return d; }
int cuCtxSetCurrent(void *c) { NEED(c == &context, 201); current = c; return 0; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { NEED(current, 201); *least = 0; *greatest = -5; return 0; }
int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  NEED(current, 201); NEED(flags == 1, 1);
  Stream *s = calloc(1, sizeof *s); s->priority = priority; *out = born(s, STREAM, 0); return 0;
}
int cuStreamSynchronize(Stream *s) {
  NEED(current, 201); NEED(find(s, STREAM, 0), 400); NEED(!s->capturing, 900);
  for (int i = 0; i < s->queue.n; i++) {
    Op *o = &s->queue.ops[i];
    if (o->kind == 2) o->fn(); else memcpy(o->dst, o->src, o->size);
  }
  s->queue.n = 0; return 0;
}
int cuStreamDestroy_v2(Stream *s) { NEED(current, 201); NEED(dies(s, STREAM), 400); return 0; }
int cuMemAlloc_v2(u64 *out, size_t size) {
  NEED(current, 201); NEED(size, 1); *out = (u64)born(malloc(size), DEVICE, size); return 0;
}
int cuMemFree_v2(u64 p) { NEED(current, 201); NEED(dies((void *)p, DEVICE), 400); free((void *)p); return 0; }
int cuMemHostAlloc(void **out, size_t size, unsigned f) {
  NEED(current, 201); NEED(size && f == 1, 1); *out = born(malloc(size), HOST, size); return 0;
}
int cuMemFreeHost(void *p) { NEED(current, 201); NEED(dies(p, HOST), 400); free(p); return 0; }
int cuMemcpyHtoDAsync_v2(u64 d, const void *h, size_t n, Stream *s) {
  NEED(current, 201); NEED(find((void *)d, DEVICE, n) && find(h, HOST, n) && find(s, STREAM, 0), 400);
  add(s, (Op){1, (void *)d, h, n, 0}); return 0;
}
int cuMemcpyDtoHAsync_v2(void *h, u64 d, size_t n, Stream *s) {
  NEED(current, 201); NEED(find((void *)d, DEVICE, n) && find(h, HOST, n) && find(s, STREAM, 0), 400);
  add(s, (Op){1, h, (void *)d, n, 0}); return 0;
}
int cuStreamBeginCapture_v2(Stream *s, int mode) {
  NEED(current, 201); NEED(find(s, STREAM, 0) && mode == 1, 400); s->capturing = 1; return 0;
}
int cuStreamEndCapture(Stream *s, void **out) {
  NEED(current, 201); NEED(find(s, STREAM, 0) && s->capturing, 400);
  List *g = malloc(sizeof *g); *g = s->taken; memset(&s->taken, 0, sizeof *g); s->capturing = 0;
  *out = born(g, GRAPH, 0); return 0;
}
int cuGraphGetNodes(List *g, Op **nodes, size_t *n) {
  NEED(current, 201); NEED(find(g, GRAPH, 0), 400);
  for (size_t i = 0; nodes && i < *n; i++) nodes[i] = &g->ops[i];
  *n = g->n; return 0;
}
int cuGraphNodeGetType(Op *o, int *type) { NEED(current, 201); *type = o->kind == 2 ? 0 : 1; return 0; }
int cuGraphInstantiateWithFlags(void **out, List *g, unsigned long long flags) {
  NEED(current, 201); NEED(find(g, GRAPH, 0) && !flags, 400);
  List *e = calloc(1, sizeof *e); for (int i = 0; i < g->n; i++) push(e, g->ops[i]); *out = born(e, READY, 0); return 0;
}
int cuGraphLaunch(List *e, Stream *s) {
  NEED(current, 201); NEED(find(e, READY, 0) && find(s, STREAM, 0), 400);
  for (int i = 0; i < e->n; i++) add(s, e->ops[i]);
  return 0;
}
int cuGraphExecDestroy(List *e) { NEED(current, 201); NEED(dies(e, READY), 400); return 0; }
int cuGraphDestroy(List *g) { NEED(current, 201); NEED(dies(g, GRAPH), 400); return 0; }
