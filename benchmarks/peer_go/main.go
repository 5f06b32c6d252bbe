// A sidecar in Go, of its standard library alone: goroutines read VerneMQ's connections, 32 others post what a bounded channel gives
// them with one http.Client. Nothing is durable, nothing is tried again, and there is no order.
package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	atOnce  = 32
	waiting = 1000
	longest = 256 << 20
)

// published is NanoMQ's body of on_message_publish.
type published struct {
	TS       int64  `json:"ts"`
	Topic    string `json:"topic"`
	Retain   bool   `json:"retain"`
	QoS      int32  `json:"qos"`
	Action   string `json:"action"`
	Username string `json:"from_username"`
	ClientID string `json:"from_client_id"`
	Payload  string `json:"payload"`
}

var errMalformed = errors.New("malformed protobuf")

// fields calls visit with each field of a message: its number, and its value as a number or as bytes.
func fields(data []byte, visit func(field uint64, number uint64, value []byte)) error {
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return errMalformed
		}
		data = data[n:]
		switch tag & 7 {
		case 0:
			number, n := binary.Uvarint(data)
			if n <= 0 {
				return errMalformed
			}
			data = data[n:]
			visit(tag>>3, number, nil)
		case 2:
			length, n := binary.Uvarint(data)
			if n <= 0 || length > uint64(len(data)-n) {
				return errMalformed
			}
			end := n + int(length)
			visit(tag>>3, 0, data[n:end])
			data = data[end:]
		default:
			return errMalformed
		}
	}
	return nil
}

// render makes a body of a frame, which is a google.protobuf.Any with an OnPublish in it.
func render(frame []byte) ([]byte, error) {
	var message, time []byte
	if err := fields(frame, func(field, _ uint64, value []byte) {
		if field == 2 {
			message = value
		}
	}); err != nil {
		return nil, err
	}
	body := published{Action: "message_publish"}
	if err := fields(message, func(field, number uint64, value []byte) {
		switch field {
		case 1:
			time = value
		case 2:
			body.Username = string(value)
		case 3:
			body.ClientID = string(value)
		case 5:
			body.QoS = int32(number)
		case 6:
			body.Topic = string(value)
		case 7:
			body.Payload = string(value)
		case 8:
			body.Retain = number != 0
		}
	}); err != nil {
		return nil, err
	}
	if err := fields(time, func(field, number uint64, _ []byte) {
		if field == 1 {
			body.TS += int64(number) * 1000
		} else if field == 2 {
			body.TS += int64(number) / 1000000
		}
	}); err != nil {
		return nil, err
	}
	return json.Marshal(body)
}

// read puts the frames of a connection into a channel as bodies.
func read(connection net.Conn, bodies chan<- []byte) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 64<<10)
	var head [4]byte
	for {
		if _, err := io.ReadFull(reader, head[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(head[:])
		if length > longest {
			log.Printf("a frame of %d bytes", length)
			return
		}
		frame := make([]byte, length)
		if _, err := io.ReadFull(reader, frame); err != nil {
			return
		}
		body, err := render(frame)
		if err != nil {
			log.Print(err)
			continue
		}
		bodies <- body
	}
}

// post sends a body, signed as Standard Webhooks says when there is a key.
func post(client *http.Client, url string, key, body []byte) error {
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("content-type", "application/json")
	if key != nil {
		var random [16]byte
		if _, err := rand.Read(random[:]); err != nil {
			return err
		}
		id, now := "msg_"+hex.EncodeToString(random[:]), fmt.Sprint(time.Now().Unix())
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, now, body)
		request.Header.Set("webhook-id", id)
		request.Header.Set("webhook-timestamp", now)
		request.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func main() {
	port := flag.Int("port", 0, "where to listen for VerneMQ")
	url := flag.String("url", "", "where the requests go")
	secret := flag.String("secret", "", "sign them with it")
	authority := flag.String("authority", "", "a PEM file with the certificate of who may vouch for the endpoint")
	flag.Parse()
	var key []byte
	if *secret != "" {
		var err error
		if key, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(*secret, "whsec_")); err != nil {
			log.Fatal(err)
		}
	}
	transport := &http.Transport{MaxIdleConnsPerHost: atOnce, MaxConnsPerHost: atOnce}
	if *authority != "" {
		pem, err := os.ReadFile(*authority)
		if err != nil {
			log.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	client := &http.Client{Transport: transport}
	bodies := make(chan []byte, waiting)
	for i := 0; i < atOnce; i++ {
		go func() {
			for body := range bodies {
				if err := post(client, *url, key, body); err != nil {
					log.Print("lost an event: ", err)
				}
			}
		}()
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go read(connection, bodies)
	}
}
