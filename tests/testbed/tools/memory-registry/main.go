// Command memory-registry serves a registry from memory, over plain http: that of go-containerregistry (ggcr), or that
// of cuelabs.dev/go/oci/ociregistry (ociserver).
//
// The second module has the server as a package only; the command of the first leaves the referrers API out.
package main

import (
	"log"
	"net/http"
	"os"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/google/go-containerregistry/pkg/registry"
)

func handler(make string) http.Handler {
	switch make {
	case "ggcr":
		return registry.New(registry.WithReferrersSupport(true))
	case "ociserver":
		return ociserver.New(ocimem.New(), nil)
	}
	log.Fatalf("no registry is named %q", make)
	return nil
}

func main() {
	if len(os.Args) != 3 {
		log.Fatalf("usage: %s ggcr|ociserver ADDRESS:PORT", os.Args[0])
	}
	server := &http.Server{
		Addr:              os.Args[2],
		Handler:           handler(os.Args[1]),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
