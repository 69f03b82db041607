/* What the Python bindings of TensorRT 11 ask of its three libraries, so that they load where those cannot be had. Nothing can be
 * built or run: asked for a builder or a runtime, they say an error to the logger that comes with it, and give none. */
#include <stddef.h>

enum { VERSION = 110400, ERROR = 1 };
enum { LOG = 4 }; /* which virtual function of ILogger `log` is, behind those of IVersionedInterface and two destructors */

typedef void (*Log)(void *logger, int severity, const char *message);

static void *none(void *logger) {
    Log log = (*(Log **)logger)[LOG];
    log(logger, ERROR, "these are no libraries");
    return NULL;
}

void *createInferBuilder_INTERNAL(void *logger, int version) { return none(logger); }
void *createInferRuntime_INTERNAL(void *logger, int version) { return none(logger); }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
int getInferLibVersion(void) { return VERSION; }
int getNvOnnxParserVersion(void) { return VERSION; }
int initLibNvInferPlugins(void *logger, const char *plugin_namespace) { return 1; }
void *getPluginRegistry(void) { return NULL; }
void *getBuilderPluginRegistry(int capability) { return NULL; }
void *getLogger(void) { return NULL; }
