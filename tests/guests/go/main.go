// A program in Go, as any other: arguments, environment, files, exit codes.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println(os.Args[1:], os.Getenv("NAME"))
	file := os.Args[1] + "/from-go"
	if err := os.WriteFile(file, []byte("text"), 0o644); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	text, err := os.ReadFile(file)
	fmt.Println(string(text), err)
	os.Exit(7)
}
