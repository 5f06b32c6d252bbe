// Takes webhooks: verifies each, remembers its id, and prints its event.
//
//	WEBHOOK_SECRET=whsec_... go run receiver.go
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const maxBody = 20 << 20

// A receiver has the key of the signatures, and the ids of what it has handled.
type receiver struct {
	key   []byte
	mutex sync.Mutex
	seen  map[string]time.Time
}

// verify checks the signature, as https://www.standardwebhooks.com describes it.
func (r *receiver) verify(header http.Header, body []byte) bool {
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, r.key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	// While a secret is changed, there is a signature for each.
	for _, signature := range strings.Fields(header.Get("webhook-signature")) {
		encoded, isV1 := strings.CutPrefix(signature, "v1,")
		given, err := base64.StdEncoding.DecodeString(encoded)
		if isV1 && err == nil && hmac.Equal(given, mac.Sum(nil)) {
			return true
		}
	}
	return false
}

// isNew remembers an id for three days, the longest that mqhooks tries.
func (r *receiver) isNew(id string) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if _, known := r.seen[id]; known {
		return false
	}
	r.seen[id] = time.Now()
	if len(r.seen)%10_000 == 0 {
		for old, at := range r.seen {
			if time.Since(at) > 72*time.Hour {
				delete(r.seen, old)
			}
		}
	}
	return true
}

func (r *receiver) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, maxBody))
	if err != nil {
		http.Error(response, "the body is incomplete or too long", http.StatusRequestEntityTooLarge)
		return
	}
	if !r.verify(request.Header, body) {
		http.Error(response, "not signed", http.StatusUnauthorized)
		return
	}
	if r.isNew(request.Header.Get("webhook-id")) {
		fmt.Println(string(body))
	}
	response.WriteHeader(http.StatusNoContent)
}

func main() {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("WEBHOOK_SECRET"), "whsec_"))
	if err != nil || len(key) == 0 {
		log.Fatal("WEBHOOK_SECRET is no secret: whsec_ and base64")
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	http.Handle("POST /hook", &receiver{key: key, seen: map[string]time.Time{}})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}
