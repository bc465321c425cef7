"""The commands for AWS: data in S3, training on spot machines, the stack, costs. The door to AWS is utils/aws.py."""
