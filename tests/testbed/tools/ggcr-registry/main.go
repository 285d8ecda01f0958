// Command ggcr-registry serves the registry of go-containerregistry from memory, over plain http, with the referrers
// API.
//
// The module's own command leaves that API out.
package main

import (
	"log"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatalf("usage: %s ADDRESS:PORT", os.Args[0])
	}
	server := &http.Server{
		Addr:              os.Args[1],
		Handler:           registry.New(registry.WithReferrersSupport(true)),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
