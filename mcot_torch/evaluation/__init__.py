"""Every model beside the exact chain: numbers only, no drawing."""
