// Command handler serves an admission webhook with nothing but net/http, encoding/json and the types of k8s.io/api.
// Every pod that it gets is allowed with one JSON Patch, of the same size as the patch of oras-csi. It decodes the pod, or
// only the metadata of the pod.
package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var jsonPatch = admissionv1.PatchTypeJSONPatch

// annotations decodes what it is named for, and returns the annotations.
func annotations(what string, raw []byte) (map[string]string, error) {
	if what == "metadata" {
		var object metav1.PartialObjectMetadata
		err := json.Unmarshal(raw, &object)
		return object.Annotations, err
	}
	var pod corev1.Pod
	err := json.Unmarshal(raw, &pod)
	return pod.Annotations, err
}

func admit(writer http.ResponseWriter, request *http.Request, what string, patch []byte) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
		http.Error(writer, "not a review", http.StatusBadRequest)
		return
	}
	found, err := annotations(what, review.Request.Object.Raw)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	response := &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	if found["oras.land/artifact"] != "" {
		response.PatchType, response.Patch = &jsonPatch, patch
	}
	answer, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
	if err != nil {
		http.Error(writer, err.Error(), http.StatusInternalServerError)
		return
	}
	writer.Header().Set("Content-Type", "application/json")
	if _, err := writer.Write(answer); err != nil {
		log.Print(err)
	}
}

func main() {
	if len(os.Args) != 6 {
		log.Fatalf("usage: %s pod|metadata ADDRESS:PORT CERTIFICATE KEY PATCH", os.Args[0])
	}
	patch, err := os.ReadFile(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /mutate", func(writer http.ResponseWriter, request *http.Request) {
		admit(writer, request, os.Args[1], patch)
	})
	server := &http.Server{Addr: os.Args[2], Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServeTLS(os.Args[3], os.Args[4]))
}
