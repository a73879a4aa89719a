// Package catalog is a folder of Consul's definition files to start from; its
// README says what each shows. The test loads them as a control plane does.
package catalog
