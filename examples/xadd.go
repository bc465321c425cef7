// A producer in Go without a module: XADD an image, wait for its verdict.   go run examples/xadd.go photo.jpg
//
// The queue's server: REDIS_URL (redis:// or unix://), else the one that `python -m worker --embedded` starts.

package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const patience = 120 * time.Second

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run examples/xadd.go IMAGE")
		os.Exit(2)
	}
	answer, err := judge(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	fmt.Println(answer)
	var said struct{ Error any }
	if json.Unmarshal([]byte(answer), &said) != nil || said.Error != nil {
		os.Exit(3)
	}
}

func judge(file string) (string, error) {
	image, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	home, _ := os.UserHomeDir()
	folder := set("IMGV_QUEUE_EMBEDDED_DIR", filepath.Join(home, ".cache/img_ml_verify/queue"))
	address, err := url.Parse(set("REDIS_URL", "unix://"+filepath.Join(folder, "server.sock")))
	if err != nil {
		return "", err
	}
	var server net.Conn
	if address.Scheme == "unix" {
		server, err = net.Dial("unix", address.Path)
	} else {
		port := address.Port()
		if port == "" {
			port = "6379"
		}
		server, err = net.Dial("tcp", net.JoinHostPort(address.Hostname(), port))
	}
	if err != nil {
		return "", err
	}
	defer server.Close()
	answers := bufio.NewReader(server)
	if password, given := address.User.Password(); given {
		user := address.User.Username()
		if user == "" {
			user = "default"
		}
		if _, err := ask(server, answers, "AUTH", user, password); err != nil {
			return "", err
		}
	}

	prefix, id := set("IMGV_QUEUE_PREFIX", "image_verify"), newID()
	job := []string{"XADD", prefix + ":jobs", "*", "job_id", id, "image", string(image), "filename", filepath.Base(file)}
	if _, err := ask(server, answers, job...); err != nil {
		return "", err
	}
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		answer, err := ask(server, answers, "GET", prefix+":verdict:"+id)
		if err != nil || answer != "" {
			return answer, err
		}
	}
	return "", fmt.Errorf("no answer within %s; does a worker run?", patience)
}

func set(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func newID() string {
	bytes := make([]byte, 16)
	if _, err := rand.Read(bytes); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", bytes)
}

// One command in the protocol of Redis, an array of bulk strings, and its answer: a status, a number, a string, or
// nothing, which is empty.
func ask(server io.Writer, answers *bufio.Reader, parts ...string) (string, error) {
	command := fmt.Sprintf("*%d\r\n", len(parts))
	for _, part := range parts {
		command += fmt.Sprintf("$%d\r\n%s\r\n", len(part), part)
	}
	if _, err := io.WriteString(server, command); err != nil {
		return "", err
	}
	line, err := answers.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, head := line[0], strings.TrimSuffix(line[1:], "\r\n")
	switch kind {
	case '-':
		return "", errors.New(head)
	case '$':
	default:
		return head, nil
	}
	length, err := strconv.Atoi(head)
	if err != nil || length < 0 {
		return "", err
	}
	bytes := make([]byte, length+2)
	_, err = io.ReadFull(answers, bytes)
	return string(bytes[:length]), err
}
