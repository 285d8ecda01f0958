// Command controller-runtime serves an admission webhook as most operators do: with the webhook server, the decoder and
// the patch helper of sigs.k8s.io/controller-runtime. Every pod with an annotation of oras-csi gets one volume.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

type podHandler struct {
	decoder    admission.Decoder
	attributes map[string]string
}

func (h *podHandler) Handle(_ context.Context, request admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := h.decoder.Decode(request, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if pod.Annotations["oras.land/artifact"] != "" {
		pod.Annotations["oras.land/pinned"] = h.attributes["csi.oras.land/recipe"]
		csi := &corev1.CSIVolumeSource{Driver: "csi.oras.land", VolumeAttributes: h.attributes}
		source := corev1.VolumeSource{CSI: csi}
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "oras", VolumeSource: source})
		for i := range pod.Spec.Containers {
			mount := corev1.VolumeMount{Name: "oras", MountPath: "/artifact", ReadOnly: true}
			pod.Spec.Containers[i].VolumeMounts = append(pod.Spec.Containers[i].VolumeMounts, mount)
		}
	}
	mutated, err := json.Marshal(pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, mutated)
}

func main() {
	if len(os.Args) != 5 {
		log.Fatalf("usage: %s ADDRESS:PORT CERTIFICATE KEY ATTRIBUTES", os.Args[0])
	}
	text, err := os.ReadFile(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	attributes := map[string]string{}
	if err := json.Unmarshal(text, &attributes); err != nil {
		log.Fatal(err)
	}
	host, written, err := net.SplitHostPort(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	port, err := strconv.Atoi(written)
	if err != nil {
		log.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		log.Fatal(err)
	}
	server := webhook.NewServer(webhook.Options{
		Host:     host,
		Port:     port,
		CertDir:  filepath.Dir(os.Args[2]),
		CertName: filepath.Base(os.Args[2]),
		KeyName:  filepath.Base(os.Args[3]),
	})
	handler := &podHandler{decoder: admission.NewDecoder(scheme), attributes: attributes}
	server.Register("/mutate", &webhook.Admission{Handler: handler})
	log.Fatal(server.Start(context.Background()))
}
