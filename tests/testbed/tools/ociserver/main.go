// Command ociserver serves the registry of cuelabs.dev/go/oci/ociregistry from memory, over plain http.
//
// The module has the server as a package only.
package main

import (
	"log"
	"net/http"
	"os"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatalf("usage: %s ADDRESS:PORT", os.Args[0])
	}
	server := &http.Server{
		Addr:              os.Args[1],
		Handler:           ociserver.New(ocimem.New(), nil),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
