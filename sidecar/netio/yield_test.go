package netio

import "testing"

// It is tried ever more seldom where it does not pay, and always where it does.
func TestYield(t *testing.T) {
	var y yield
	tried := 0
	for range 1000 {
		if y.likely() {
			tried++
			y.after(false)
		}
	}
	if tried < 10 || tried > 25 {
		t.Errorf("%d of 1000 reads yielded in vain", tried)
	}
	for !y.likely() {
	}
	y.after(true)
	for range 100 {
		if !y.likely() {
			t.Fatal("a read did not yield though it pays")
		}
		y.after(true)
	}
}
