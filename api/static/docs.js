// The API's reference by Swagger UI. Without a validatorUrl it would send the document to a host of others.

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#reference", deepLinking: true, validatorUrl: null });
