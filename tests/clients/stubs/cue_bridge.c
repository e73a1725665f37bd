/* An empty stand-in for cuengine's Go library, which evaluates CUE files; the cache never calls it. */
#include <stdlib.h>
char *cue_eval_package(const char *dir, const char *package) { (void)dir, (void)package; abort(); }
char *cue_eval_module(const char *root, const char *package, const char *options) {
    (void)root, (void)package, (void)options; abort();
}
void cue_free_string(char *s) { (void)s; abort(); }
char *cue_bridge_version(void) { abort(); }
